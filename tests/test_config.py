"""Configurations: every key is checked, errors name it in full, text survives a round trip."""

import math
from pathlib import Path
from typing import get_args

import pytest
import yaml

from kfcnet.cli import main
from kfcnet.config import (
    ConfigError,
    aliases,
    config_names,
    dump_config,
    load_config,
    parse_config,
    read_config,
    yaml_text,
)
from kfcnet.config.layers import LayerConfig, ResponseNormConfig
from kfcnet.config.optimizers import OptimizerConfig, ScheduleConfig
from kfcnet.config.schema import (
    DataConfig,
    HessianFreeConfig,
    KfacConfig,
    KfcPreConfig,
    OpsConfig,
    SgdConfig,
)
from kfcnet.network import build_network
from kfcnet.ops.cpu import CpuOps

FOLDER = Path(__file__).parents[1] / "configs"
TEXT = """
data: {name: digits}
network:
- {layer: conv, filters: 8, kernel: 3, std: 1e-4}
- {layer: relu}
- {layer: max_pool, size: 2, stride: 2}
- {layer: conv, name: middle, filters: 8, kernel: 3}
- {layer: conv, filters: 8, kernel: 3}
- {layer: dense, units: 10}
optimizer:
  name: kfc_pre
  learning_rate: 1e-3
  weight_decay: {conv1: .004, dense1: 1}
epochs: 3
"""


def parse(*overrides, text=TEXT):
    return parse_config(text, "my.yaml", overrides)


def error_of(*overrides, text=TEXT):
    with pytest.raises(ConfigError) as caught:
        parse(*overrides, text=text)
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 2
    return message


def test_the_papers_curves_are_packaged():
    assert {"cifar_kfc", "cifar_sgd", "svhn_kfc", "svhn_sgd", "digits_kfc", "digits_sgd"} <= set(
        config_names()
    )


@pytest.mark.parametrize("name", config_names())
def test_every_config_parses_and_survives_a_round_trip(name):
    config = load_config(name)
    assert load_config(f"{name}.yaml") == load_config(FOLDER / f"{name}.yaml") == config
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize("name", config_names())
def test_every_config_opens_by_saying_what_it_reproduces(name):
    assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("data", ["cifar", "svhn", "digits"])
def test_both_methods_train_the_same_network_on_the_same_data(data):
    kfc, sgd = load_config(f"{data}_kfc"), load_config(f"{data}_sgd")
    assert kfc.network == sgd.network and kfc.data == sgd.data
    assert kfc.optimizer.weight_decay == sgd.optimizer.weight_decay


@pytest.mark.parametrize("config, published", [
    (KfcPreConfig(learning_rate=0.01),
     dict(batch_size=512, damping=1e-3, momentum=0.9, clip=0.3, clip_fraction=1 / 4,
          averaging_timescale=50000, statistics_timescale=50000)),
    (SgdConfig(learning_rate=0.01),
     dict(batch_size=128, momentum=0.9, averaging_timescale=50000)),
    # Martens and Grosse (2015), for autoencoders
    (KfacConfig(),
     dict(damping=150, damping_decay=19 / 20, damping_period=5, factor_damping_period=20,
          inverse_period=20, statistics_fraction=1 / 8, fisher_fraction=1 / 4,
          statistics_period=1, statistics_timescale=10000)),
    # Martens (2010), Martens and Sutskever (2012)
    (HessianFreeConfig(), dict(damping_decay=2 / 3, warm_start=0.95)),
    # cuda-convnet's layers
    (ResponseNormConfig(size=3), dict(scale=5e-5, power=0.75)),
    # data/README.md
    (DataConfig(name="svhn"), dict(extra=False)),
])  # fmt: skip
def test_what_is_left_out_is_as_published(config, published):
    assert {name: getattr(config, name) for name in published} == published


def test_statistics_timescale_follows_the_averaging_timescale_unless_given():
    assert parse("optimizer.averaging_timescale=700").optimizer.statistics_timescale == 700
    assert parse("optimizer.statistics_timescale=30").optimizer.statistics_timescale == 30


def test_layers_without_a_name_are_numbered_by_kind():
    names = [getattr(layer, "name", None) for layer in parse().network]
    assert names == ["conv1", None, None, "middle", "conv3", "dense1"]


def test_a_network_names_its_layers_as_its_config_does():
    layers = "[{layer: conv, filters: 2, kernel: 1}, {layer: max_pool, size: 2, stride: 2}, "
    layers += "{layer: batch_norm, affine: true}, {layer: relu, name: rectified}, "
    layers += "{layer: max_pool, size: 2, stride: 2}, {layer: dense, units: 10}]"
    config = parse(f"network={layers}", "optimizer.weight_decay.batch_norm1_affine=1")
    built = build_network(config.network, (8, 8, 1), CpuOps("float32"))
    assert [layer.name for layer in built.layers] == [
        "conv1", "max_pool1", "batch_norm1", "batch_norm1_affine", "rectified", "max_pool2",
        "dense1",
    ]  # fmt: skip
    weighted = [name for layer in config.network if (name := layer.weighted_name)]
    assert [layer.name for layer in built.weighted] == weighted


def test_a_pool_is_written_with_a_name_only_where_it_was_given_one():
    def written(*overrides):
        return yaml_text.parse(dump_config(parse(*overrides)))["network"][2]

    assert written() == {"layer": "max_pool", "size": 2, "stride": 2, "clipped": True}
    assert written("network.2.name=pool") == {"name": "pool", **written()}
    assert parse("network.2.name=pool").network[2].name == "pool"


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse().epochs = 4


@pytest.mark.parametrize("text, value", [
    ("1e-3", 1e-3), ("-1E3", -1e3), (".5", 0.5), ("12", 12), ("010", 10), ("off", "off"),
    ("yes", "yes"), ("true", True), ("null", None), ("~", None), ("", None), ("1:30", "1:30"),
    ("'1e-3'", "1e-3"), ("2016-05-24", "2016-05-24"), ("{a: [1, b]}", {"a": [1, "b"]}),
    ("True", True), ("FALSE", False), ("tRUE", "tRUE"), ("Null", None), ("NULL", None),
    ("0x1F", 31), ("0o17", 15), ("+12", 12), ("1_000", "1_000"), (".Inf", math.inf),
    ("-.INF", -math.inf), ("!!float 3", 3.0), ("!!str 0x10", "0x10"), ("!!int 0o17", 15),
])  # fmt: skip
def test_plain_scalars_are_read_by_the_rules_of_yaml_1_2(text, value):
    parsed = yaml_text.parse(text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    "value",
    ["off", "1e-3", "1:30", "null", "é", "a: b", "0x10", "0o17", "True", "NULL", "010", 1e-5, 3],
)
def test_dumped_scalars_mean_the_same_to_any_yaml_reader(value):
    text = yaml_text.dump({"key": value})
    assert yaml_text.parse(text) == {"key": value} == yaml.safe_load(text)


@pytest.mark.parametrize("override, key, value", [
    ("optimizer.learning_rate=3e-2", "learning_rate", 0.03),
    ("optimizer.weight_decay=0", "weight_decay", 0),
    ("optimizer.weight_decay.conv1=1", "weight_decay", {"conv1": 1, "dense1": 1}),
    ("optimizer.clip=null", "clip", None),
])  # fmt: skip
def test_overrides_are_yaml_values(override, key, value):
    assert getattr(parse(override).optimizer, key) == value


def test_overrides_reach_items_of_lists_and_sections_left_out():
    config = parse("network.0.std=he", "network.5.units=7", "ops.native=off", "data.path=/where")
    assert config.network[0].std == "he" and config.network[5].units == 7
    assert config.ops == OpsConfig(native="off") and config.data.path == Path("/where")


def test_overrides_reach_layers_by_their_names():
    config = parse("network.middle.std=0.5", "network.conv3.std=2", "network.max_pool1.name=pool")
    assert [layer.std for layer in config.network if layer.layer == "conv"] == [1e-4, 0.5, 2]
    config = parse("network.pool.layer=avg_pool", text=dump_config(config))
    assert (config.network[2].layer, config.network[2].name) == ("avg_pool", "pool")


@pytest.mark.parametrize("override, message", [
    ("optimizer.dampin=1", "optimizer.dampin: unknown key; did you mean damping?"),
    ("learning_rate=1", "learning_rate: unknown key; did you mean optimizer.learning_rate"),
    ("lr=1", "lr: unknown key; did you mean optimizer.learning_rate?"),
    ("optimizer.lr=1", "optimizer.lr: unknown key; did you mean learning_rate?"),
    ("data.nme=svhn", "data.nme: unknown key; did you mean name?"),
    ("network.0.kernl=3", "network.0.kernl: unknown key; did you mean kernel?"),
    ("network.0.layer=cnv", "network.0.layer: unknown value cnv; did you mean conv?"),
    ("network.1=relu", "network.1: must be keys and values, got 'relu'"),
    ("network.1={size: 2}", "network.1.layer: missing"),
    ("network.0={layer: conv, kernel: 3}", "network.0.filters: missing"),
    ("network=[]", "network: must be a list of at least one item, got []"),
    ("network=[{layer: relu}]", "network: no conv or dense layer"),
    ("network.4.name=conv1", "network: 2 layers are named conv1"),
    ("network.2.name=conv1", "network: 2 layers are named conv1"),
    ("network.2.name=relu1", "network: 2 layers are named relu1"),
    ("network=[{layer: batch_norm, affine: true}, {layer: relu, name: batch_norm1_affine}]",
     "network: 2 layers are named batch_norm1_affine"),
    ("network.0.name=a/b", "network.0.name: must be letters, digits and _ only, got 'a/b'"),
    ("network.0.std=hee", "network.0.std: must be a number or he, got 'hee'"),
    ("network.0.std={a: 1}", "network.0.std: must be a number, got {'a': 1}"),
    ("network.0.std=0", "network.0.std: must be above 0, got 0"),
    ("network.0.filters=1.5", "network.0.filters: must be a whole number, got 1.5"),
    ("network.0.padding=-1", "network.0.padding: must be at least 0, got -1"),
    ("network.2.stride=3", "network.2.stride: 3 is above the window's size, 2"),
    ("network.6.std=1", "--set network.6.std: network has items 0 to 5, not 6"),
    ("network.x.std=1", "network.x.std: network has items 0 to 5, not x; known: conv1, relu1,"),
    ("network.conv2.std=1", "network has items 0 to 5, not conv2; did you mean conv"),
    ("network.max_pool1.stride=3", "network.2.stride: 3 is above the window's size, 2"),
    ("optimizer.name=kfc_pree", "optimizer.name: unknown value kfc_pree; did you mean kfc_pre?"),
    ("optimizer={name: sgd, learning_rate: 1, damping: 1}", "optimizer.damping: unknown key"),
    ("optimizer.damping=-1", "optimizer.damping: must be at least 0, got -1"),
    ("optimizer={name: sgd}", "optimizer.learning_rate: missing"),
    ("optimizer={learning_rate: 1}", "optimizer.name: missing"),
    ("optimizer.learning_rate=fast", "optimizer.learning_rate: must be a number, got 'fast'"),
    ("optimizer.learning_rate=true", "optimizer.learning_rate: must be a number, got True"),
    ("optimizer.learning_rate=.inf", "optimizer.learning_rate: must be a finite number, got inf"),
    ("optimizer.momentum=1", "optimizer.momentum: must be below 1, got 1"),
    ("optimizer.clip_fraction=1.5", "optimizer.clip_fraction: must be at most 1, got 1.5"),
    ("optimizer.statistics_fraction=0", "optimizer.statistics_fraction: must be above 0, got 0"),
    ("optimizer.weight_decay=[1]", "optimizer.weight_decay: must be a number, got [1]"),
    ("optimizer.weight_decay.conv1=x", "optimizer.weight_decay.conv1: must be a number, got 'x'"),
    ("optimizer.weight_decay={mapping: 1, conv1: x}",
     "optimizer.weight_decay.conv1: must be a number, got 'x'"),
    ("optimizer.weight_decay={1: 1}", "optimizer.weight_decay.1: must be text, got 1"),
    ("optimizer.weight_decay.conv9=1", "optimizer.weight_decay.conv9: the network has no such"),
    ("optimizer.max_norm=0", "optimizer.max_norm: must be above 0, got 0"),
    ("optimizer.max_norm.conv9=1", "optimizer.max_norm.conv9: the network has no such"),
    ("optimizer.nesterov=true", "optimizer.nesterov: unknown key"),
    ("optimizer.schedule=cosine", "optimizer.schedule: must be keys and values, got 'cosine'"),
    ("optimizer.schedule.name=cosin", "optimizer.schedule.name: unknown value cosin; did you"),
    ("optimizer.schedule={name: step}", "optimizer.schedule.at: missing"),
    ("optimizer.schedule={name: step, at: []}", "optimizer.schedule.at: must be a list of at"),
    ("optimizer.schedule={name: step, at: [0]}", "optimizer.schedule.at.0: must be above 0"),
    ("optimizer.schedule={name: constant, at: [1]}", "optimizer.schedule.at: unknown key"),
    ("optimizer.schedule={name: step, at: 1, step: 2}",
     "optimizer.schedule.at: must be a list, got 1"),
    ("optimizer.schedule={name: cosine, warm_up: 5, examples: 4}",
     "optimizer.schedule.examples: 4 is not above warm_up, 5"),
    ("optimizer.inverse_period=4", "optimizer.inverse_period: 4 is below statistics_period, 5"),
    ("optimizer.statistics_period=21", "optimizer.inverse_period: 20 is below statistics"),
    ("optimizer={name: kfc_pre, learning_rate: 1, inverse_delay: 21}",
     "optimizer.inverse_delay: 21 is above inverse_period, 20"),
    ("optimizer={name: kfc_pre, learning_rate: 1, structure: ekfac, inverse_delay: 1}",
     "optimizer.inverse_delay: 1 with structure ekfac would lose the moments seen meanwhile"),
    ("optimizer={name: kfc_pre, learning_rate: 1, structure: sua, tikhonov: exact}",
     "optimizer.structure: sua with tikhonov exact: exact goes with kfc alone"),
    ("evaluation={every: 1.5, unit: updates}", "evaluation: every must be a whole number"),
    ("data=null", "data: must be keys and values, got None"),
    ("epochs=0", "epochs: must be above 0, got 0"),
    ("epochs=1.7e308", "epochs: must be at most 1000000000, got 1.7e+308"),
    ("seed=4294967296", "seed: must be below 4294967296, got 4294967296"),
    ("device=gpu", "device: must be auto, cpu or cuda, got 'gpu'"),
    ("dtype=float16", "dtype: must be float32 or float64, got 'float16'"),
    ("ops.shards=0", "ops.shards: must be at least 1, got 0"),
    ("ops.tensor_cores=yes", "ops.tensor_cores: must be auto, on or off, got 'yes'"),
    ("epochs.x=1", "--set epochs.x: epochs has no keys of its own"),
    ("epochs", "--set epochs: expected key.key=value"),
    ("epochs=[1", "--set epochs: line 1, column 3: expected ',' or ']'"),
])  # fmt: skip
def test_bad_settings_are_refused_by_the_name_of_their_key(override, message):
    assert message in error_of(override)


@pytest.mark.parametrize("key, union", [
    ("optimizer", OptimizerConfig), ("network.1", LayerConfig),
    ("optimizer.schedule", ScheduleConfig),
])  # fmt: skip
def test_an_unknown_key_is_answered_with_the_keys_of_the_model_that_was_chosen(key, union):
    for model in get_args(get_args(union)[0]):
        tag, field = next(iter(model.model_fields.items()))
        message = error_of(f"{key}={{{tag}: {field.default}, zzz: 1}}")
        known = ", ".join(model.model_fields)
        assert message.splitlines()[0] == f"my.yaml: {key}.zzz: unknown key; known: {known}"


@pytest.mark.parametrize("section", ["data", "network", "optimizer", "epochs"])
def test_a_section_that_is_missing_is_named(section):
    document = yaml.safe_load(TEXT)
    del document[section]
    assert error_of(text=yaml.safe_dump(document)) == f"my.yaml: {section}: missing"


def test_a_section_that_a_run_wrote_as_null_can_be_set():
    written = dump_config(parse("optimizer.name=sgd", "optimizer.weight_decay=0"))
    assert "max_norm: null" in written and "diagnostics: null" in written
    config = parse("optimizer.max_norm.conv1=4", text=written)
    assert config.optimizer.max_norm == {"conv1": 4}
    written = dump_config(parse())
    assert parse("diagnostics.every=50", text=written).diagnostics.every == 50


def test_a_misspelt_key_is_reported_once_and_not_as_missing_too():
    message = error_of(text=TEXT.replace("learning_rate", "learning_rat"))
    assert message == "my.yaml: optimizer.learning_rat: unknown key; did you mean learning_rate?"


def test_many_errors_are_counted_not_listed():
    message = error_of("seed=-1", "epochs=-1", "device=gpu")
    assert message.splitlines()[1] == "(and 2 more errors)"


@pytest.mark.parametrize("text, message", [
    ("a: [1\nb: 2", "my.yaml: line 2, column 2: expected ',' or ']'"),
    ("a: 1\na: 2", "my.yaml: line 1, column 1: key a is given 2 times"),
    ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ("a: *b", "my.yaml: line 1, column 4: found undefined alias"),
    ("? [1, 2]\n: 3", "found unhashable key"),
    ("a: \x00", "my.yaml: not YAML"),
    ("a: !!bool perhaps", "my.yaml: line 1, column 4: 'perhaps' is no bool of YAML 1.2"),
    ("a: !!int 1_000", "my.yaml: line 1, column 4: '1_000' is no int of YAML 1.2"),
    ("a: !!float [1]", "my.yaml: line 1, column 4: expected a scalar node"),
    ("a: !!map b", "my.yaml: line 1, column 4: expected a mapping node"),
    ("a: !!timestamp soon", "my.yaml: line 1, column 4: could not determine a constructor"),
    ("a: !!binary x", "my.yaml: line 1, column 4: could not determine a constructor"),
    ("a: " + 5000 * "9", "my.yaml: line 1, column 4: '999"),
    ("a: 0x" + 5000 * "f", "my.yaml: line 1, column 4: '0xfff"),
    ("", "my.yaml: expected keys and values, got None"),
    ("- 1", "my.yaml: expected keys and values, got [1]"),
])  # fmt: skip
def test_text_that_is_no_config_is_refused_with_its_place(text, message):
    assert message in error_of(text=text)


def test_a_missing_file_is_answered_with_the_known_names(tmp_path):
    with pytest.raises(ConfigError, match="No such file(.|\n)*cifar_kfc, .*digits_kfc, "):
        load_config(tmp_path / "none.yaml")


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="picture.yaml: not a text file"):
        load_config(tmp_path / "picture.yaml")


def test_a_name_that_means_two_different_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_kfc.yaml").write_text(TEXT)
    with pytest.raises(ConfigError, match="write ./digits_kfc.yaml for the file"):
        load_config("digits_kfc.yaml")
    assert load_config("./digits_kfc.yaml") == parse()
    assert load_config("digits_kfc") == load_config(FOLDER / "digits_kfc.yaml")


@pytest.mark.parametrize("content", [b"seed: \xff", b"seed: [", None])
def test_a_runs_config_that_cannot_be_read_is_an_error_naming_it(content, tmp_path):
    path = tmp_path / "config.yaml"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_config(path)


def test_a_runs_config_is_read_with_overrides(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(parse()))
    assert read_config(path) == parse() and read_config(path, ["seed=3"]) == parse("seed=3")


OLD_SPELLINGS = [
    ("{name: kfc_pre, learning_rate: 1, structure: ekfc}", "structure", "ekfac",
     "optimizer.structure: ekfc is called ekfac now"),
    ("{structure: white, name: kfc_pre, learning_rate: 1}", "structure", "white_derivatives",
     "optimizer.structure: white is called white_derivatives now"),
    ("{name: kfac, least_damping: 0.25}", "min_damping", 0.25,
     "optimizer.least_damping is called min_damping now"),
    ("{name: hessian_free, least_damping: 0.25}", "min_damping", 0.25,
     "optimizer.least_damping is called min_damping now"),
]  # fmt: skip


@pytest.fixture
def notices(caplog):
    """The lines that this test has logged, as if no configuration had been read before."""
    aliases._tell.cache_clear()
    yield caplog
    aliases._tell.cache_clear()


@pytest.mark.parametrize("optimizer, key, value, notice", OLD_SPELLINGS)
def test_an_older_spelling_means_the_present_one_and_is_told_once(
    optimizer, key, value, notice, notices, tmp_path
):
    text = yaml_text.dump({**yaml_text.parse(TEXT), "optimizer": yaml_text.parse(optimizer)})
    config = parse(text=text)
    assert getattr(config.optimizer, key) == value
    present = parse(text=dump_config(config))
    assert present == config and dump_config(present) == dump_config(config)
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml") == parse(f"optimizer={optimizer}") == config
    assert notices.messages == [notice]


def test_an_override_reaches_a_setting_under_either_name(notices):
    old, new = "{name: kfac, least_damping: 1}", "{name: kfac, min_damping: 1}"
    for optimizer in old, new:
        for key in "least_damping", "min_damping":
            assert parse(f"optimizer={optimizer}", f"optimizer.{key}=2").optimizer.min_damping == 2
    assert parse("optimizer.structure=white").optimizer.structure == "white_derivatives"
    assert len(notices.messages) == 2


def test_a_setting_under_both_of_its_names_is_refused():
    message = error_of("optimizer={name: kfac, least_damping: 1, min_damping: 1}")
    assert message == "my.yaml: optimizer.least_damping is called min_damping now: give one of them"


def test_the_command_line_shows_the_notice(notices, capsys):
    arguments = ["--config", "digits_kfc", "--set", "optimizer.structure=ekfc", "--print-config"]
    assert main(["train", *arguments]) == 0
    output = capsys.readouterr()
    assert "structure: ekfac" in output.out
    assert output.err == "optimizer.structure: ekfc is called ekfac now\n"
