import { h, render } from "preact";

render(h("p", null, "hello from preact"), document.body);
