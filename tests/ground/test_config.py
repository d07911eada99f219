"""Settings: flag before variable before user's file before system's file before default; wrong words are refused by name."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from wherry import config
from wherry.errors import Invalid


class Places:
    """A user's and a system's directory of settings."""

    def __init__(self, base: Path) -> None:
        self.etc, self.home = base / "etc", base / "home"
        self.environment = {"XDG_CONFIG_HOME": str(self.home)}

    def system(self, text: str, name: str = "config.yaml") -> Path:
        return self._write(self.etc / "wherry" / name, text)

    def user(self, text: str, name: str = "config.yaml") -> Path:
        return self._write(self.home / "wherry" / name, text)

    def _write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def load(self, flags: Mapping[str, object] | None = None, **variables: str) -> dict[str, config.Value]:
        environment = {**self.environment, **variables}
        return config.load(flags or {}, environment, config.places(environment, str(self.etc)))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_without_anything_all_is_default(places: Places) -> None:
    found = places.load()
    assert {each.origin for each in found.values()} == {"default"}
    assert list(found) == [setting.name for setting in config.SETTINGS]
    assert found["profile"].value == "default"
    assert found["nodes"].value is None
    assert found["timeout"].value == 60


def test_the_nearest_place_wins(places: Places) -> None:
    assert places.load()["timeout"] == config.Value(60, "default")
    system = places.system("timeout: 10\nprofile: fast-failover\n")
    assert places.load()["timeout"] == config.Value(10, str(system))
    user = places.user("timeout: 20\n")
    assert places.load()["timeout"] == config.Value(20, str(user))
    assert places.load()["profile"] == config.Value("fast-failover", str(system))
    assert places.load(WHERRY_TIMEOUT="30")["timeout"] == config.Value(30, "WHERRY_TIMEOUT")
    assert places.load({"timeout": 40}, WHERRY_TIMEOUT="30")["timeout"] == config.Value(40, "flag")
    assert places.load({"timeout": None}, WHERRY_TIMEOUT="")["timeout"] == config.Value(20, str(user))


def test_a_flag_of_zero_is_a_flag(places: Places) -> None:
    assert places.load({"simulated": 0}, WHERRY_SIMULATED="3")["simulated"] == config.Value(0, "flag")


def test_drop_ins_go_before_their_file_the_last_name_first(places: Places) -> None:
    places.system("timeout: 1\nnodes: 1\nsimulated: 1\n")
    first = places.system("timeout: 2\nnodes: 2\n", "config.yaml.d/10-site.yaml")
    last = places.system("timeout: 3\n", "config.yaml.d/90-host.yaml")
    places.system("timeout: 99\n", "config.yaml.d/ignored.txt")
    found = places.load()
    assert found["timeout"] == config.Value(3, str(last))
    assert found["nodes"] == config.Value(2, str(first))
    assert found["simulated"].value == 1
    places.user("timeout: 4\n")
    assert places.load()["timeout"].value == 4


def test_the_users_directory_follows_home(tmp_path: Path) -> None:
    found = config.places({"HOME": str(tmp_path)}, str(tmp_path / "etc"))
    assert found == [tmp_path / ".config/wherry/config.yaml", tmp_path / "etc/wherry/config.yaml"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("profil", "did you mean 'profile'?"),
        ("node", "did you mean 'nodes'?"),
        ("time-out", "did you mean 'timeout'?"),
        ("xyzzy", "there are root, nodes, simulated, profile, durability, timeout"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(places: Places, key: str, hint: str) -> None:
    path = places.user(f"{key}: 1\n")
    with pytest.raises(Invalid) as caught:
        places.load()
    assert str(path) in caught.value.message
    assert repr(key) in caught.value.message
    assert hint in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: many\n", "nodes 'many': not a whole number"),
        ("nodes: -1\n", "nodes -1: not a whole number"),
        ("nodes: true\n", "nodes True: not a whole number"),
        ("timeout: 1.5\n", "timeout 1.5: not a whole number"),
        ("profile: fast\n", "profile 'fast': one of default, fast-failover"),
        ("durability: none\n", "durability 'none': one of full, test"),
        ("- a list\n", "not a mapping of settings"),
        ("nodes: [1\n", "config.yaml"),
    ],
)
def test_a_wrong_value_says_where_it_stands(places: Places, text: str, words: str) -> None:
    path = places.user(text)
    with pytest.raises(Invalid) as caught:
        places.load()
    assert str(path) in caught.value.message
    assert words in caught.value.message


def test_a_wrong_variable_is_named(places: Places) -> None:
    with pytest.raises(Invalid, match="WHERRY_NODES: nodes 'two': not a whole number"):
        places.load(WHERRY_NODES="two")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_says_nothing(places: Places, text: str) -> None:
    places.user(text)
    assert places.load()["nodes"].origin == "default"
