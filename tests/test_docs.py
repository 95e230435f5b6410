"""What the pages say is true: their commands parse, their Python compiles, their links lead somewhere.

    python tests/test_docs.py

writes `docs/configuration.md` and the tables of the README anew.
"""

import argparse
import ast
import dataclasses
import functools
import json
import os
import pathlib
import re
import shlex
import statistics
import sys
import typing

import pytest

sys.path.insert(
    0, str(pathlib.Path(__file__).resolve().parent.parent)
)  # as a script too: the checkout, installed or not

from rlplatform import cli, config, runtime
from rlplatform.analysis import retained, savings, scores
from rlplatform.analysis.savings import how_frozen
from rlplatform.presets import resolve

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "docs" / "configuration.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page, language):
    """The texts of a page's fenced blocks in one language."""
    return [text for _, found, text in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def prose(page):
    """A page without its fenced blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(page):
    """Every complete `rlplatform ...` line of a page: in blocks of shell, and in prose where arguments follow."""
    lines = [line for text in blocks(page, "sh") for line in text.splitlines()]
    lines += re.findall(r"`(rlplatform [a-z]+ [^`]+)`", prose(page).replace("\n", " "))
    return [line.removeprefix(".venv/bin/") for line in lines if re.match(r"(\.venv/bin/)?rlplatform ", line)]


SHOWN = sorted({command for page in PAGES for command in commands(page)})


@functools.cache
def parser():
    return cli._parser()


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_that_is_shown_is_one_that_the_command_line_takes(command):
    args = parser().parse_args(shlex.split(command, comments=True)[1:])
    assert callable(args.run)
    if args.command == "train" and ".py:" not in args.env and not (args.preset or "").endswith(".toml"):
        resolve(args.env, args.preset, args.set)


def test_the_readme_shows_every_command():
    actions = parser()._actions
    known = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    assert {command.split()[1] for command in commands(ROOT / "README.md")} == set(known)


@pages
def test_a_script_that_is_shown_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?:\./|python )(scripts/[\w.]+|tests/[\w/.]+)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pages
def test_python_that_is_shown_compiles_and_imports_what_there_is(page):
    for text in blocks(page, "python"):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlplatform"):
                module = __import__(node.module, fromlist=["_"])
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pages
def test_a_link_leads_to_a_file_or_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(ROOT), target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, target


def test_the_readme_fetches_no_picture_from_elsewhere_and_its_pictures_are_small():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert pictures
    for picture in pictures:
        assert 1_000 < (ROOT / picture).stat().st_size < 300_000


def test_the_environment_in_the_readme_can_be_made_and_pays_at_its_right_end(tmp_path, monkeypatch, forgets_imports):
    from rlplatform import envs

    (source,) = [text for text in blocks(ROOT / "README.md", "python") if "class MyEnv" in text]
    (tmp_path / "my_env.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    env = envs.make(config.EnvironmentConfig(id="my_env.py:MyEnv"))
    try:
        env.reset(seed=0)
        rewards = [float(env.step([1])[1][0]) for _ in range(3)]
        assert rewards == [0.0, 0.0, 1.0]
    finally:
        env.close()


TEACHERS = 5  # of a row of compression that is shown, and seeds of one of transfer
SEEDS = {"returns": 10, "foreign": 5, "memory": 5}  # of a row that is shown, by the name of its file


def returns_of(name):
    """The rows of a file of returns that are complete."""
    tree = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    return [row for row in scores.rows(tree) if row.seeds >= SEEDS[name]]


def returns_table(name):
    """Those rows as the README shows them: beside the newest policies, or beside random actions."""
    last = "Newest policy's IQM" if name == "returns" else "Random actions, mean"
    lines = [
        f"| Environment | Preset | Env steps | IQM, 95 % interval | Worst seed | {last} |",
        "|---|---|---|---|---|---|",
    ]
    for row in returns_of(name):
        beside = scores.interval(row.last, row.seeds) if name == "returns" else scores.interval(row.random, row.seeds)
        cells = (row.env, f"`{row.preset}`", f"{row.steps:,}", scores.interval(row.best, row.seeds))
        lines.append(f"| {' | '.join((*cells, scores.number(row.worst), beside))} |")
    return "\n".join(lines)


def compression_table():
    """What is left of the teachers, for each method that all of them have."""
    head = ("Environment", "Method", "Network", "Bytes", "Smaller", "Return kept, 95 % interval", "Clear choices", "µs")
    lines = [f"| {' | '.join((*head, 'Refused'))} |", "|" + (len(head) + 1) * "---|"]
    rows = retained.rows(json.loads((ROOT / "benchmarks" / "compression.json").read_text(encoding="utf-8")))
    shown = {(row.env, row.method) for row in rows if row.teachers >= TEACHERS}
    for row in rows:
        if (row.env, row.method.removeprefix(f"{retained.SCRATCH} as ")) in shown:
            network = next(iter(row.networks)) if len(row.networks) == 1 else f"{len(row.networks)} different"
            kept = "-" if row.retention is None else scores.interval(row.retention, row.teachers, 3)
            clear = "-" if row.clear is None else f"{row.clear:.1%}".replace("%", " %")
            cells = (row.env, f"`{row.method}`", network, f"{row.bytes:,.0f}", f"{row.ratio:.1f}x", kept, clear)
            lines.append(f"| {' | '.join((*cells, f'{row.microseconds:.1f}', f'{row.refused} of {row.teachers}'))} |")
    return "\n".join(lines)


def transfer_table():
    """Env steps to the threshold with transfer and without, for each pair that has enough seeds."""
    head = ("Environment", "After", "Layers frozen", "Threshold", "Seeds", "Steps from scratch", "With transfer")
    lines = [f"| {' | '.join((*head, 'Ratio, 95 % interval'))} |", "|" + (len(head) + 1) * "---|"]
    for row in savings(json.loads((ROOT / "benchmarks" / "transfer.json").read_text(encoding="utf-8"))):
        if row.seeds >= TEACHERS:
            spent = (
                f"{steps:,.0f}" + ("" if reached == row.seeds else f" ({reached} of {row.seeds} there)")
                for steps, reached in zip((row.scratch, row.transfer), row.reached, strict=True)
            )
            changed = " ".join((row.target, *(f"`{change}`" for change in row.changes)))
            frozen = " ".join((how_frozen(row), *(f"`{change}`" for change in row.transfer_changes)))
            cells = (changed, row.source, frozen, f"{row.threshold:g}", str(row.seeds), *spent)
            lines.append(f"| {' | '.join((*cells, scores.interval(row.ratio, row.seeds, 2)))} |")
    return "\n".join(lines)


def with_tables(text):
    """The README with the files' tables in the places of those that it has: each is the first one after its link."""
    tables = {name: returns_table(name) for name in SEEDS}
    tables |= {"compression": compression_table(), "transfer": transfer_table()}
    for name, table in tables.items():
        start = text.index("| Environment |", text.index(f"](benchmarks/{name}.json)"))
        text = text[:start] + table + text[text.index("\n\n", start) :]
    return text


@pytest.mark.slow  # thousands of resamples for each row
def test_the_tables_in_the_readme_are_those_of_the_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == with_tables(text), "python tests/test_docs.py writes it anew"


def test_every_environment_of_others_is_learned_beyond_chance():
    rows = returns_of("foreign")
    assert len(rows) >= 5
    assert [row.env for row in rows if row.best.low <= row.random.high] == []


def test_the_results_in_the_readme_are_those_of_the_files():
    """The figures of the table, worked out anew from the raw numbers."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "speed.jsonl").read_text(encoding="utf-8").splitlines()]
    for task in ("cartpole", "cartpole8", "pong"):
        rates = {}
        for peer in ("rlplatform", "sb3"):
            found = sorted(row["env_steps_per_s"] for row in rows if (row["task"], row["peer"]) == (task, peer))
            rates[peer] = found[len(found) // 2]
        assert f"{rates['rlplatform']:,.0f} env steps/s, {rates['rlplatform'] / rates['sb3']:.1f} times" in text
    cost = json.loads((ROOT / "benchmarks" / "priority_cost.json").read_text(encoding="utf-8"))
    assert f"{cost['share_of_an_update']:.0%} of what one update".replace("%", " %") in text
    memory = json.loads((ROOT / "benchmarks" / "replay_memory.json").read_text(encoding="utf-8"))
    assert f"{memory['ring_gb']:.1f} GB, stacks of four" in text
    folds = json.loads((ROOT / "benchmarks" / "lossless_folds.json").read_text(encoding="utf-8"))
    assert f"{folds['parameters']:,} weights become {folds['folded_parameters']:,}" in text
    assert f"the same action in {folds['states'] - folds['other_actions']:,} of {folds['states']:,} states" in text


def test_the_results_in_the_page_about_devices_are_those_of_the_files():
    text = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    intervals = []
    for name, where in (("one_replica", "one device"), ("replicas", "two replicas")):
        (row,) = scores.rows(json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8")))
        best, newest = (f"{it.estimate:.1f} [{it.low:.1f}, {it.high:.1f}]" for it in (row.best, row.last))
        assert f"| {where} | {best} | {row.worst:.1f} | {newest} |" in text
        assert row.seeds == 10
        intervals.append(row.best)
    assert max(it.low for it in intervals) <= min(it.high for it in intervals), "they overlap"
    ratio = json.loads((ROOT / "benchmarks" / "one_device.json").read_text(encoding="utf-8"))["ratio"]
    assert f"{ratio['mean']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times" in text


def test_the_figures_of_layer_norm_are_those_of_the_file():
    tree = json.loads((ROOT / "benchmarks" / "compression.json").read_text())
    words = " ".join((ROOT / "docs" / "quantisation.md").read_text().split())
    found = {}
    for method in ("int8", "int16x8"):
        for env in ("Acrobot-v1", "LunarLander-v3"):
            cells = [cell for cell in tree["cells"] if (cell["env"], cell["method"]) == (env, method)]
            assert len(cells) == 5
            found[env, method] = statistics.median(cell["clear"] for cell in cells)
            assert {cell["passed"] for cell in cells} == {method == "int16x8"}
    acrobot, lunar = found["Acrobot-v1", "int8"], found["LunarLander-v3", "int8"]
    assert f"takes {100 * acrobot:.1f} and {100 * lunar:.1f} % of the clear choices (medians)" in words
    assert found["Acrobot-v1", "int16x8"] == found["LunarLander-v3", "int16x8"] == 1.0
    for env in ("Acrobot-v1", "LunarLander-v3"):
        row = next(
            line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {env} | `int16x8` |")
        )
        assert row.split(" | ")[5] in words, "the return that is kept"


def test_the_figures_of_pong_are_those_of_the_file():
    tree = json.loads((ROOT / "benchmarks" / "pong.json").read_text(encoding="utf-8"))
    cells = {cell["method"]: cell for cell in tree["cells"]}
    whole, small, (teacher,) = cells["folds"], cells["20kB"], tree["teachers"]
    means = {name: sum(it["returns"]) / len(it["returns"]) for name, it in (*cells.items(), ("teacher", teacher))}
    smaller, faster = whole["bytes"] / small["bytes"], whole["microseconds"] / small["microseconds"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        f"{small['bytes']:,} bytes instead of {whole['bytes']:,}, {smaller:.0f} times smaller, {faster:.1f} times"
        in readme
    )
    assert f"mean return {means['20kB']:.1f}, its teacher's {means['teacher']:.1f}, over" in readme
    assert f"refuses it; from scratch {means['scratch']:.1f} |" in readme
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("folds", "int8", "20kB", "scratch"):
        cell = cells[name]
        assert f"| `{name}` | {cell['bytes']:,} | {cell['microseconds']:.1f} | {means[name]:.2f} |" in text
    assert small["bytes"] <= 20_000
    speed = json.loads((ROOT / "benchmarks" / "nature_speed.json").read_text(encoding="utf-8"))
    large, student, times = speed["large"], speed["student"], f"{speed['times_faster']['median']:.1f} times"
    assert student["architecture"] == small["architecture"]
    assert (
        f"{large['microseconds']:.1f} µs and {student['microseconds']:.1f} µs, {times} faster; {large['bytes']:,} and "
        f"{student['bytes']:,} bytes" in readme
    )
    assert f"a file of the same layers is {times} faster" in text
    assert f"decides {times} as fast" in (ROOT / "docs" / "quantisation.md").read_text(encoding="utf-8")


def test_the_figures_of_int8_without_layer_norm_are_those_of_the_file():
    text = (ROOT / "docs" / "quantisation.md").read_text(encoding="utf-8")
    tree = json.loads((ROOT / "benchmarks" / "without_layer_norm.json").read_text(encoding="utf-8"))
    rows = {row.env: row for row in retained.rows(tree) if row.method == "int8"}
    for env, row in rows.items():
        assert f"{row.clear:.1%} ({env})".replace("%", " %") in text
        assert f"{row.retention.estimate:.3f} [{row.retention.low:.3f}, {row.retention.high:.3f}]" in text
        assert row.teachers == 5
    assert f"refuse {rows['Acrobot-v1'].refused} and {rows['LunarLander-v3'].refused} of\nfive" in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shares = (100 * rows[env].clear for env in ("Acrobot-v1", "LunarLander-v3"))
    assert "keep {:.1f} and {:.1f} % of the clear choices there".format(*shares) in readme


# --- docs/transition.md ---------------------------------------------------------------------------------------------


def names_in(path):
    """Every class, function and `Class.method` that a file defines."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    names |= {inner.name, f"{node.name}.{inner.name}"}
    return names


def test_the_functions_that_the_walk_names_are_in_the_files_that_it_names():
    text = (ROOT / "docs" / "transition.md").read_text(encoding="utf-8")
    pairs = re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, | and )?)+)", text)
    pairs += [(file, name) for name, file in re.findall(r"(`[\w.]+`)\s+\(`([\w/]+\.py)`\)", text)]
    assert len(pairs) >= 8
    for file, names in pairs:
        for name in re.findall(r"`([\w.]+)`", names):
            assert name in names_in(ROOT / file), f"{name} in {file}"
    everywhere = set().union(
        *(names_in(path) for top in ("rlplatform", "envs", "agents") for path in (ROOT / top).rglob("*.py"))
    )
    calls = re.findall(r"`(_?[a-z][a-z0-9]*_[a-z0-9_]+|[A-Z]\w+\.\w+)`", text)
    allowed = set(config_names())
    assert [call for call in calls if call not in everywhere | allowed] == []


def config_names():
    """The last parts of the configuration's keys."""
    return {key.rpartition(".")[2] for key in config.all_keys()}


def test_the_walk_opens_at_most_six_files_in_the_order_of_the_data():
    text = (ROOT / "docs" / "transition.md").read_text(encoding="utf-8")
    order = ["envs/make.py", "rlplatform/training/collectors.py", "rlplatform/training/learner.py"]
    order += ["rlplatform/experience/replay.py", "agents/dqn.py", "agents/heads.py"]
    places = [text.index(f"`{file}`: ") for file in order]
    assert places == sorted(places)
    assert len(text.splitlines()) < 60, "less than a page"


# --- docs/bundle.md -------------------------------------------------------------------------------------------------


def test_the_page_about_the_bundle_shows_a_manifest_of_this_format():
    (shown,) = blocks(ROOT / "docs" / "bundle.md", "json")
    manifest = json.loads(shown)
    assert (manifest["format"], manifest["version"]) == (runtime.FORMAT, runtime.FORMAT_VERSION)
    parts = runtime.manifest._PARTS
    assert [part for part in parts if part not in manifest] == []


# --- docs/configuration.md ------------------------------------------------------------------------------------------

INTRODUCTION = """# Configuration

What a run is made from, key by key. A value comes from the defaults below, then the preset (`--preset`, a name from
`rlplatform list presets` or a TOML file), then the options of `train`, then `--set`, each over what came before:

```sh
rlplatform train Acrobot-v1 --set replay.capacity=50000 --set "network.hidden_units=[128, 128]"
rlplatform train Acrobot-v1 --set exploration.epsilon.end=0.01
rlplatform train Acrobot-v1 --set "optimizer.learning_rate={kind='cosine', start=1e-3, end=1e-5}"
```

Values are TOML, a bare word is a text. The whole tree is saved in the run as `config.toml`, which is itself a preset. A
preset in TOML names only what differs from the defaults:

```toml
[training]
total_steps = 100_000

[optimizer]
learning_rate = { kind = "linear", start = 1e-3, end = 0.0 }
```

It may go over a shipped one, and hold what is different for one environment, or for all whose ids a pattern matches:

```toml
[preset]
description = "rainbow, in smaller batches on Atari"
extends = "rainbow"

[environments."ALE/*".training]
batch_size = 16
```

Written by `python tests/test_docs.py` from `rlplatform/config.py`; a test compares the two.
"""


def sections():
    """`(path, dataclass)` of the tree's root, its sections, and the schedule."""
    yield "", config.Config
    for field in dataclasses.fields(config.Config):
        if dataclasses.is_dataclass(field.default):
            yield field.name, type(field.default)
    yield "a schedule", config.Schedule


def accepted(hint, field):
    """What a key takes, in words."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
    plain = {bool: "`true`, `false`", str: "a text", int: "a whole number", float: "a number"}
    words = plain.get(hint, "")
    if hint is config.Schedule:
        words = "a number or a schedule"
    elif typing.get_origin(hint) is tuple:
        kinds = {int: "a list of whole numbers", config.Convolution: "a list of lists of three whole numbers"}
        words = kinds.get(typing.get_args(hint)[0], "a list of numbers")
    elif typing.get_origin(hint) is dict:
        words = "a table"
    span = config._range(*(f"{bound:,}" if isinstance(bound, int) else bound for bound in (low, high, above)))
    return f"{words}, {span}" if span else words


def default_of(field):
    """A key's default as TOML would write it."""
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return f"`{toml(config._plain(value))}`"


def toml(value):
    """A plain value as TOML writes it in one line."""
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value) if isinstance(value, bool | str) else str(value)


def configuration_page():
    """The text of `docs/configuration.md`."""
    parts = [INTRODUCTION.rstrip("\n")]
    for path, cls in sections():
        title = "The root" if not path else path if cls is config.Schedule else f"`{path}`"
        parts.append(f"\n## {title[0].upper() + title[1:]}\n\n{' '.join(cls.__doc__.split())}\n")
        parts.append("| Key | Default | Takes | Meaning |\n|---|---|---|---|")
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[field.name]) and cls is config.Config:
                continue
            name = f"{path}.{field.name}" if path and cls is not config.Schedule else field.name
            row = (f"`{name}`", default_of(field), accepted(hints[field.name], field), field.metadata["help"])
            parts.append("| " + " | ".join(row) + " |")
    return "\n".join(parts) + "\n"


def test_the_page_of_all_keys_is_that_of_the_configuration():
    assert CONFIGURATION.read_text(encoding="utf-8") == configuration_page(), "rewrite it: python tests/test_docs.py"


def test_the_page_of_all_keys_has_a_row_for_each():
    shown = set(re.findall(r"^\| `([\w.]+)` ", CONFIGURATION.read_text(encoding="utf-8"), flags=re.MULTILINE))
    leaves = {key for key in config.all_keys() if not any(other.startswith(f"{key}.") for other in config.all_keys())}
    schedules = {"optimizer.learning_rate", "exploration.epsilon", "replay.importance_exponent"}
    parts = {field.name for field in dataclasses.fields(config.Schedule)}
    expected = {key for key in leaves if key.rpartition(".")[0] not in schedules} | schedules | parts
    assert shown == expected


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    CONFIGURATION.write_text(configuration_page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
