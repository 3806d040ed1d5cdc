"""The Procfile is the one list of processes: systemd units and compose say the same."""

import configparser
import shlex
from pathlib import Path

import yaml

from deploy.procfile import INFRASTRUCTURE, read

DEPLOY = Path(__file__).parents[3] / "deploy"
PARTS = {name: process for name, process in read().items() if name not in INFRASTRUCTURE}


def _units() -> dict[str, configparser.RawConfigParser]:
    units = {}
    for file in DEPLOY.glob("systemd/*.service"):
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(file, encoding="utf-8")
        units[file.stem.removeprefix("regis-")] = unit
    return units


def test_the_procfile_names_every_process_of_the_architecture() -> None:
    assert list(read()) == [
        "postgres",
        "valkey",
        "centre-web",
        "centre-worker",
        "centre-hl7",
        "node-pacs",
        "node-gateway",
    ]


def test_every_process_has_a_systemd_unit_that_runs_the_same_command() -> None:
    commands = {name: shlex.split(unit["Service"]["ExecStart"]) for name, unit in _units().items()}
    assert commands == {name: ["/opt/regis/regis", *process.command[1:]] for name, process in PARTS.items()}


def test_units_restart_their_process_and_read_the_settings_of_their_project() -> None:
    for name, unit in _units().items():
        assert unit["Service"]["Restart"] == "always"
        assert unit["Service"]["EnvironmentFile"] == f"/etc/regis/{name.partition('-')[0]}.env"


def test_every_process_has_a_compose_service_that_runs_the_same_command() -> None:
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == set(read())
    commands = {name: tuple(service["command"]) for name, service in services.items() if name in PARTS}
    assert commands == {name: process.command for name, process in PARTS.items()}


def test_examples_of_settings_name_only_settings_that_exist() -> None:
    for part, module in (("centre", "ris_central"), ("node", "pacs_node")):
        config = (DEPLOY.parent / module / "config.py").read_text(encoding="utf-8")
        lines = (DEPLOY / "systemd" / f"{part}.env.example").read_text(encoding="utf-8").splitlines()
        names = [line.partition("=")[0] for line in lines if line and not line.startswith("#")]
        assert names
        for name in names:
            assert f"    {name.removeprefix(f'REGIS_{part.upper()}_').lower()}:" in config, name


def test_the_optional_proxy_runs_like_the_other_processes_of_a_node() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "optional" / "regis-node-proxy.service", encoding="utf-8")
    gateway = _units()["node-gateway"]
    assert unit["Service"]["ExecStart"] == "/opt/regis/regis node run proxy"
    same = set(gateway["Service"]) - {"ExecStart"}
    assert {key: unit["Service"][key] for key in same} == {key: gateway["Service"][key] for key in same}
    assert "node-proxy" not in read(), "a node needs two processes; the proxy is started where an old PACS is kept"
    compose = (DEPLOY / "compose" / "proxy.yaml").read_text(encoding="utf-8")
    assert "command: [regis, node, run, proxy]" in compose
