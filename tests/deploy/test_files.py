"""What a deployment is made of: every file by its schema or its own checker, and made of things that exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from online_align.learn_command import parser as learner_words
from server.__main__ import _check_doors
from server.config import ENVIRONMENT_PREFIX, ServerConfig, load_config
from server.errors import ConfigError
from tests.deploy.prometheus import DEPLOY, ROOT

SCHEMA = Path(__file__).parent / "schemas" / "compose-spec.json"
"""The Compose Specification's own (Apache License 2.0, beside it)."""
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return read


SERVICES: dict[str, dict[str, Any]] = compose()["services"]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    schema = msgspec.json.decode(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator(schema).validate(compose(name))


def test_a_mistake_in_a_compose_file_would_be_found() -> None:
    broken = compose()
    broken["services"]["server"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.Draft202012Validator(msgspec.json.decode(SCHEMA.read_bytes())).validate(broken)


def test_the_five_services_are_healthy_or_not_and_keep_their_own() -> None:
    assert set(SERVICES) == {"server", "learner", "postgres", "prometheus", "grafana"}
    read = compose()
    for name, service in SERVICES.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        named = {volume["source"] for volume in service["volumes"] if volume["type"] == "volume"}
        assert named, f"{name} keeps nothing"
        assert named <= set(read["volumes"])
        assert set(service["networks"]) <= set(read["networks"])
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or (DEPLOY / volume["source"]).exists(), volume
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "others come in through a proxy with TLS, or not at all"
    assert {name for name, service in SERVICES.items() if "outside" in service["networks"]} == {"server", "grafana"}
    assert SERVICES["server"]["volumes"] == SERVICES["learner"]["volumes"], "they share a journal's keys and adapters"


def test_names_in_the_network_are_services() -> None:
    scraped = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert {"server", "learner"} == {host for host in re.findall(r'"([a-z]+):\d+"', scraped) if host != "localhost"}
    assert "@postgres/" in SERVICES["server"]["environment"]["DUOLOGUE_JOURNAL_URL"]
    assert SERVICES["grafana"]["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"


def test_whatever_must_be_set_is_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text()))
    wanted |= {each["environment"] for each in compose()["secrets"].values()}
    lines = (DEPLOY / "example.env").read_text().splitlines()
    example = {line.partition("=")[0]: line.partition("=")[2] for line in lines if line and not line.startswith("#")}
    assert set(example) == wanted
    assert not any(example.values()), "a password that is shipped is everybody's"


def test_settings_in_containers_are_settings() -> None:
    inside = {name for service in SERVICES.values() for name in service.get("environment", {})}
    inside |= set(re.findall(rf"\b{ENVIRONMENT_PREFIX}\w+(?==)", DOCKERFILE))
    ours = {name for name in inside if name.startswith(ENVIRONMENT_PREFIX)}
    fields = {ENVIRONMENT_PREFIX + name.upper() for name in ServerConfig.__struct_fields__}
    assert ours <= fields | {ENVIRONMENT_PREFIX + "CONFIG"}
    values = dict.fromkeys(("POSTGRES_PASSWORD", "METRICS_TOKEN", "ADMIN_TOKEN"), "1234567890abcdef")
    values["CALLER_TOKENS"] = "ann:1234567890abcdefgh"
    environment = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: values[found[1]], value)
        for name, value in SERVICES["server"]["environment"].items()
    }
    config = load_config(["--config", str(DEPLOY / "duologue.toml")], environment | {"DUOLOGUE_HOST": "0.0.0.0"})
    assert config.tokens.split(",") == ["prometheus:1234567890abcdef:watch", "ann:1234567890abcdefgh"]
    assert config.journal_url == "postgresql+psycopg://duologue:1234567890abcdef@postgres/duologue"
    _check_doors(config)  # which refuses to let the world in without tokens
    with pytest.raises(ConfigError):
        _check_doors(msgspec.structs.replace(config, tokens="", admin_token=""))


def test_the_learner_is_started_with_words_it_knows() -> None:
    unit = re.search(r"^ExecStart=(.*)$", (DEPLOY / "systemd" / "duologue-learner.service").read_text(), re.MULTILINE)
    assert unit is not None
    started = [SERVICES["learner"]["command"], compose("compose.cuda.yaml")["services"]["learner"]["command"]]
    for command in [*started, unit[1].split()]:
        assert command[1:4] == ["-m", "online_align", "run"]
        given = learner_words("run").parse_args(command[4:])
        assert (str(given.data_dir), given.metrics_port) == ("/var/lib/duologue", 9108)
    assert "9108" in SERVICES["learner"]["healthcheck"]["test"][-1]
    assert '"learner:9108"' in (DEPLOY / "prometheus" / "prometheus.yml").read_text()


def test_the_sample_configuration_says_what_is_so_anyway() -> None:
    """It loads, and a value that is another than the default would be a surprise."""
    config = load_config(["--config", str(DEPLOY / "duologue.toml")], {})
    assert config == ServerConfig()


def test_the_dockerfile_is_well_made() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("no hadolint here (a package for Linux), so the Dockerfile is NOT linted")
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_nobodys_and_says_how_it_is() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    assert stages == ["build", "runtime", "cuda", "cpu"], "cpu last: it is what is built when nobody says what"
    runtime = DOCKERFILE.partition(" AS runtime\n")[2].partition("\nFROM ")[0]
    assert re.search(r"^USER (?!0)\d+:\d+$", runtime, re.MULTILINE)
    assert runtime.index("RUN apt-get") < runtime.index("USER ")
    assert "HEALTHCHECK" in runtime
    kept = re.search(r"^VOLUME (.*)$", runtime, re.MULTILINE)
    assert kept is not None
    targets = [volume["target"] for volume in SERVICES["server"]["volumes"]]
    assert msgspec.json.decode(kept[1]) == targets
    for name in ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "HF_HOME", "DUOLOGUE_DATA_DIR"):
        place = re.search(rf"{name}=(\S+)", runtime)
        assert place is not None
        assert place[1].startswith(tuple(targets)), f"{name} must be where the image may write"
    assert set(re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, re.MULTILINE)) == {".", "deploy/duologue.toml"}


def test_the_image_leaves_nothing_out_that_its_steps_need() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    left_out = {line for line in ignored if line and not line.startswith("#")}
    needed = ("server", "client", "kernels", "online_align", "recipes", "benchmarks", "pyproject.toml", "Makefile")
    for name in (*needed, "requirements.lock", "README.md", "LICENSE", "deploy/install.sh", "deploy/duologue.toml"):
        assert (ROOT / name).exists()
        assert name not in left_out
        assert name.partition("/")[0] not in left_out


def verify(unit: str, folder: Path, name: str) -> str:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here, so the units are NOT checked by systemd itself")
    path = folder / name
    path.write_text(unit)
    done = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_understands_the_units(path: Path, tmp_path: Path) -> None:
    """With programs that are there, since systemd looks for them."""
    unit = re.sub(r"(?<=ExecStart=)/opt/duologue/bin/\S+", sys.executable, path.read_text())
    assert unit != path.read_text()
    assert not verify(unit, tmp_path, path.name)


def test_a_mistake_in_a_unit_would_be_found(tmp_path: Path) -> None:
    unit = UNITS[0].read_text().replace("CPUWeight=", "CPUWait=")
    assert "CPUWait" in verify(unit, tmp_path, UNITS[0].name)


def test_units_run_as_a_user_that_is_made_and_stop_after_the_calls() -> None:
    users = {line.split()[1] for line in (DEPLOY / "systemd" / "duologue.sysusers.conf").read_text().splitlines()[1:]}
    drain_s = ServerConfig().drain_s
    for path in UNITS:
        settings = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
        assert settings["User"] in users
        assert int(settings["TimeoutStopSec"]) > drain_s
    assert int(SERVICES["server"]["stop_grace_period"].rstrip("s")) > drain_s
