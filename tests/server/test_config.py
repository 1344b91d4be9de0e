"""Configuration: which source wins, what is refused and how, and a command line that does not change by accident."""

from pathlib import Path

import msgspec
import pytest

from server.config import EXPECTED, ServerConfig, _check, build_parser, load_config
from server.errors import ConfigError


def test_the_flags_are_frozen() -> None:
    """A flag is a promise. Most settings belong into the file or the environment; think before adding here."""
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    assert flags == {
        "-h", "--help", "--checkpoint", "--slots", "--host", "--port", "--data-dir", "--device", "--max-speed",
        "--cache-dtype", "--config", "--token-file", "--admin-token-file", "--allow-anonymous", "--allow-origin",
        "--tls-cert", "--tls-key", "--tls-self-signed",
        "--canary-share", "--swap-live", "--learn",
        "--judge", "--judge-model", "--answers", "--recogniser", "--evidence",
        "--loss", "--beta",
    }  # fmt: skip


def test_the_settings_and_their_defaults_are_frozen() -> None:
    assert msgspec.structs.asdict(ServerConfig()) == {
        "checkpoint": "mini",
        "slots": "auto",
        "device": "auto",
        "cache_dtype": "auto",
        "host": "127.0.0.1",
        "port": 8998,
        "data_dir": Path("data"),
        "journal_url": None,
        "retention_days": 30.0,
        "log_level": "info",
        "canary_share": 0.1,
        "max_adapters": 4,
        "swap_live": False,
        "learn": False,
        "judge": "none",
        "judge_model": "",
        "answers": (),
        "recogniser": "none",
        "evidence": "users",
        "loss": "dpo-ln",
        "beta": 0.3,
        "pairs_per_round": 32,
        "round_every_s": 3600.0,
        "token_file": None,
        "tokens": "",
        "admin_token_file": None,
        "admin_token": "",
        "allow_anonymous": False,
        "login_s": 604_800.0,
        "allow_origin": (),
        "trusted_proxies": (),
        "max_calls_per_address": 16,
        "max_calls_per_user": 4,
        "max_bytes_per_s_per_address": 512_000.0,
        "tls_cert": None,
        "tls_key": None,
        "tls_self_signed": False,
        "max_waiting": 16,
        "keepalive_s": 4.0,
        "heartbeat_s": 10.0,
        "max_message_bytes": 1_048_576,
        "send_buffer_bytes": 16_384,
        "inbox_ms": 2000,
        "outbox_ms": 2000,
        "max_speed": 2.0,
        "stats_interval_s": 1.0,
        "resume_grace_s": 30.0,
        "idle_s": 60.0,
        "max_session_s": 3600.0,
        "drain_s": 30.0,
    }


def test_each_source_wins_over_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "duologue.toml"
    file.write_text('slots = 2\nport = 1002\nhost = "file"\ndrain_s = 1\ndata_dir = "/srv"\n')
    environment = {"DUOLOGUE_PORT": "1003", "DUOLOGUE_HOST": "environment", "DUOLOGUE_MAX_SPEED": "4", "HOME": "/"}
    config = load_config(["--config", str(file), "--host", "flag", "--slots", "auto"], environment)
    assert (config.slots, config.port, config.host) == ("auto", 1003, "flag")
    assert (config.drain_s, config.max_speed, config.max_waiting) == (1.0, 4.0, 16)
    assert config.data_dir == Path("/srv")
    assert load_config([], environment | {"DUOLOGUE_CONFIG": str(file)}).slots == 2


@pytest.mark.parametrize("field", sorted(ServerConfig.__struct_fields__))
def test_every_field_can_come_from_the_environment(field: str) -> None:
    default = getattr(ServerConfig(), field)
    odd = {
        "slots": "7",
        "log_level": "debug",
        "cache_dtype": "int8",
        "evidence": "turns",
        "loss": "simpo",
        "keepalive_s": "1.5",
        "heartbeat_s": "1.5",
        "canary_share": "0.5",
    }
    number = isinstance(default, int | float) and not isinstance(default, bool)
    odd |= {"allow_origin": "https://a.example,https://b.example", "trusted_proxies": "10.0.0.0/8"}
    value = odd.get(field, "True" if default is False else str(default + 1) if number else f"other-{default}")
    config = load_config([], {"DUOLOGUE_" + field.upper(): value})
    given = getattr(config, field)
    assert (",".join(given) if isinstance(given, tuple) else str(given)) == value
    assert getattr(config, field) != default


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slots", "0"),
        ("slots", "some"),
        ("port", "65536"),
        ("keepalive_s", "9"),
        ("heartbeat_s", "13"),
        ("max_speed", "0.5"),
        ("max_speed", "nan"),
        ("log_level", "loud"),
        ("max_message_bytes", "1"),
        ("resume_grace_s", "-1"),
        ("resume_grace_s", "601"),
        ("canary_share", "1.1"),
        ("idle_s", "0"),
        ("max_session_s", "0"),
        ("drain_s", "-1"),
        ("loss", "dpo_ln"),
        ("loss", ""),
        ("beta", "0"),
        ("beta", "nan"),
        ("beta", "strong"),
        ("pairs_per_round", "0"),
        ("round_every_s", "-1"),
    ],
)
def test_a_bad_value_is_refused_with_its_source(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], {"DUOLOGUE_" + name.upper(): value})
    assert str(caught.value).startswith(f"got {name} = {value!r} in the environment; expected {EXPECTED[name]}; ")
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("slot = 3", "slot = an unknown name in the file"),
        ("port = [1]", "port = [1] in the file"),
        ("data_dir = 3", "data_dir = 3 in the file"),
        ("port = ", "with a mistake"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(["--config", str(file)], {})
    assert complaint in str(caught.value)
    assert str(file) in str(caught.value)


def test_no_refusal_shows_a_token() -> None:
    for name in ("tokens", "admin_token", "journal_url"):
        with pytest.raises(ConfigError) as caught:
            _check("the file x", {name: ["anna:not-to-be-shown"]})
        assert "not-to-be-shown" not in str(caught.value)


@pytest.mark.parametrize("name", ["DUOLOGUE_SLOT", "DUOLOGUE_slots", "DUOLOGUE_", "DUOLOGUE_CONFIGS"])
def test_an_unknown_name_in_the_environment_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], {name: "3"})
    assert str(caught.value).startswith(f"got {name} = an unknown name in the environment; expected one of checkpoint")
    assert caught.value.name == name


def test_what_is_not_for_the_server_may_be_in_the_environment() -> None:
    others = {"DUOLOGUE_URL": "http://elsewhere", "DUOLOGUE_TOKEN": "its own", "DUOLOGUES": "2", "URL": "x"}
    assert load_config([], others) == ServerConfig()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(["--config", str(tmp_path / "none.toml")], {})


def test_every_field_says_what_it_takes() -> None:
    assert set(EXPECTED) == set(ServerConfig.__struct_fields__)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ServerConfig().port = 1  # type: ignore[misc]
