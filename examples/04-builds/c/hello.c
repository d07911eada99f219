#include <stdio.h>

int main(int count, char **words) {
    printf("%s, %s\n", GREETING, count > 1 ? words[1] : "world");
    return 0;
}
