"""The launch files are what accelerate accepts and what their comments describe."""

from pathlib import Path
from typing import Any

import pytest

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))


def loaded(file: Path) -> Any:
    from accelerate.commands.config.config_args import load_config_from_file

    return load_config_from_file(str(file))


def launched(file: Path) -> Any:
    """The arguments that `accelerate launch --config_file` ends up with, nothing started yet."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    args = launch_command_parser().parse_args(["--config_file", str(file), "peftkit/run.py"])
    return _validate_launch_command(args)[0]


def test_there_is_a_file_for_each_kind_of_launch() -> None:
    assert [f.stem for f in FILES] == ["ddp", "fsdp2", "multi_node", "zero3"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_accelerate_loads_the_file_and_leaves_the_precision_to_the_recipe(file: Path) -> None:
    config = loaded(file)
    assert config.mixed_precision == "no"
    assert config.num_processes > 1


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_nested_key_is_one_that_accelerate_would_silently_ignore(file: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    config = loaded(file)
    known = vars(launch_command_parser().parse_args(["peftkit/run.py"]))
    assert {*config.fsdp_config, *config.deepspeed_config} <= known.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_file_says_what_to_edit_and_how_to_launch_it(file: Path) -> None:
    comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Edit: num_") for line in comments)
    assert any(f"--config_file recipes/launch/{file.name}" in line for line in comments)


def test_ddp_starts_two_processes_on_one_machine() -> None:
    args = launched(LAUNCH / "ddp.yaml")
    assert (args.multi_gpu, args.num_processes, args.num_machines) == (True, 2, 1)
    assert not (args.use_fsdp or args.use_deepspeed)


def test_several_machines_meet_at_the_first_and_take_their_rank_from_the_command_line() -> None:
    args = launched(LAUNCH / "multi_node.yaml")
    assert args.multi_gpu and args.num_machines == 2
    assert args.num_processes % args.num_machines == 0
    assert args.main_process_ip and args.main_process_port


def test_fsdp2_reaches_the_processes_as_version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    args = launched(LAUNCH / "fsdp2.yaml")
    args.main_process_port = 0
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert "transformer_auto_wrap_policy" in repr(plugin.auto_wrap_policy)
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


def test_zero3_shards_the_weights_from_the_first_and_leaves_accumulation_to_the_recipe() -> None:
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    args = launched(LAUNCH / "zero3.yaml")
    args.main_process_port, args.deepspeed_fields_from_accelerate_config = 0, ""
    env = prepare_deepspeed_cmd_env(args)[1]
    assert env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert env["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "true"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in env
