"""What is installed is what is in the tree, under one name, complete; and what must not be written is not."""

import ast
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import rlplatform
from rlplatform.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKED = {"rlplatform/envs": "envs", "rlplatform/agents": "agents"}
SKIPPED = {".git", ".venv", "build", "dist", "runs", "bundles", "videos"}
DOORS = [
    *("rlplatform", "rlplatform.agents", "rlplatform.analysis", "rlplatform.benchmarks", "rlplatform.compression"),
    *("rlplatform.envs", "rlplatform.experience", "rlplatform.export", "rlplatform.runtime", "rlplatform.training"),
]


def texts():
    """`(path, text)` of every text file of the project; each once, though links lead to some twice."""
    for folder, folders, files in os.walk(ROOT):  # os.walk does not follow links
        folders[:] = [name for name in folders if name not in SKIPPED and not name.endswith((".egg-info", "_cache"))]
        for path in (pathlib.Path(folder, name) for name in files):
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def run(*arguments, **options):
    """The finished process of a Python program, with its output."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_the_packages_that_are_installed_are_those_in_the_tree():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    mapped = PROJECT["tool"]["setuptools"]["package-dir"]
    found = {"rlplatform"}
    for top, name in [("rlplatform", "rlplatform"), *((folder, name) for name, folder in mapped.items())]:
        for door in (ROOT / top).rglob("__init__.py"):
            found.add(".".join([name, *door.parent.relative_to(ROOT / top).parts]))
    assert sorted(listed) == listed
    assert set(listed) == found
    assert set(DOORS) == found


def test_every_folder_with_python_files_is_a_package():
    for top in ("rlplatform", "envs", "agents"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


@pytest.mark.parametrize(("link", "target"), LINKED.items())
def test_the_links_lead_to_the_folders_that_are_installed_under_their_names(link, target):
    path = ROOT / link
    if not path.is_symlink():
        pytest.skip("a checkout without links")
    assert path.readlink() == pathlib.Path("..", target)
    assert PROJECT["tool"]["setuptools"]["package-dir"][link.replace("/", ".")] == target


def test_keras_is_nowhere_reached_through_tensorflow():
    forbidden = re.compile(r"\btf\s*\." + "keras|" + r"\btensorflow\s*\." + r"keras\b")
    ours = (ROOT / "pyproject.toml", pathlib.Path(__file__))  # ruff's ban must name what it bans
    assert [str(path) for path, text in texts() if path not in ours and forbidden.search(text)] == []


def test_importing_the_platform_or_its_runtime_loads_no_tensorflow():
    program = "import sys, {}; print([name for name in ('tensorflow', 'tf_keras', 'gymnasium') if name in sys.modules])"
    for module in ("rlplatform", "rlplatform.runtime", "rlplatform.config", "rlplatform.cli"):
        result = run("-c", program.format(module), cwd=ROOT)
        assert (result.stdout, result.stderr) == ("[]\n", ""), module


@pytest.mark.parametrize("name", DOORS)
def test_a_room_says_what_it_is_for_and_its_door_lists_what_it_offers(name):
    room = importlib.import_module(name)
    assert room.__doc__, f"{name} has no docstring"
    names = room.__all__
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda it: (not it.isupper(), not it[0].isupper(), it)), "as ruff sorts them"
    for public in names:
        assert getattr(room, public) is not None
    tree = ast.parse(pathlib.Path(room.__file__).read_text(encoding="utf-8"))
    brought_in = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("rlplatform"))
        for alias in node.names
    }
    assert brought_in <= set(names), "imported at the door, but not offered there"


def test_the_platform_offers_its_functions_without_having_imported_them():
    api = importlib.import_module("rlplatform.api")
    assert rlplatform.train is api.train
    assert set(rlplatform.__all__) <= set(dir(rlplatform))
    assert rlplatform.UserError is UserError
    with pytest.raises(AttributeError, match="module 'rlplatform' has no attribute 'trian'"):
        _ = rlplatform.trian


def test_the_version_is_that_of_the_newest_entry_in_the_changelog():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == rlplatform.__version__


def test_every_decision_is_listed_and_has_its_three_parts():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    records = sorted(folder.glob("[0-9]*.md"))
    assert re.findall(r"\]\((\d{4}-.+?)\)", index) == [record.name for record in records]
    for record in records:
        text = record.read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix(f"# {record.name[:4]}: ")
        assert f"[{title}]({record.name})" in index
        assert [part for part in ("**Context.**", "**Decision.**", "**Consequences.**") if part not in text] == []


SCRIPTS = [path.stem for path in sorted((ROOT / "scripts").glob("*.py")) if "rlplatform.cli import" in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_a_door_to_the_command_of_its_name(script, tmp_path):
    door = run(str(ROOT / "scripts" / f"{script}.py"), "--help", cwd=tmp_path)
    command = run("-m", "rlplatform", script, "--help", cwd=ROOT)
    assert (door.returncode, command.returncode) == (0, 0), door.stderr + command.stderr
    assert door.stdout.partition("\n\n")[2] == command.stdout.partition("\n\n")[2]  # the usage line names the door


def commands_in(text):
    """The first words after `rlplatform` in every line of shell in a page."""
    # Every block is matched, whatever its language: the end of one that was left out would look like a beginning.
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language in ("", "sh", "bash", "console"):
            yield from re.findall(r"^(?:\$ )?(?:\.venv/bin/)?rlplatform ([a-z]+)", block, flags=re.MULTILINE)


@pytest.mark.slow
def test_every_command_in_the_pages_exists():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    commands = {command for page in pages for command in commands_in(page.read_text(encoding="utf-8"))}
    assert {"train", "compress"} <= commands
    for command in sorted(commands):
        assert run("-m", "rlplatform", command, "--help", cwd=ROOT).returncode == 0, command


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel alone was installed, built from a copy of the tree, and no other folder."""
    work = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(*SKIPPED, "*.egg-info", "__pycache__", ".*_cache", "tests")
    shutil.copytree(ROOT, work / "source", symlinks=True, ignore=ignore)
    for command in (
        "build --wheel --no-isolation --outdir dist source",
        "pip install --no-deps --no-index --find-links dist --target target rlplatform",
    ):
        result = run("-m", *command.split(), cwd=work)
        assert result.returncode == 0, result.stdout + result.stderr
    return work / "target"


def run_installed(installed, *arguments):
    """A program that finds our packages in the installed folder only, from a folder that is empty."""
    elsewhere = installed.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    # -S would lose the third-party packages with ours: they come back by name, behind the installed folder.
    paths = [str(installed), *(path for path in sys.path if path.endswith("site-packages"))]
    result = run("-S", *arguments, cwd=elsewhere, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_module_under_one_name(installed):
    assert sorted(path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")) == [
        "bin",
        "rlplatform",
    ]
    expected = {
        path.relative_to(ROOT)
        for top in ("rlplatform", "rlplatform/envs", "rlplatform/agents")
        for path in (ROOT / top).rglob("*")
        if path.suffix in (".py", ".toml", ".typed") and "__pycache__" not in path.parts
    }
    found = {path.relative_to(installed) for path in (installed / "rlplatform").rglob("*.*")}
    assert {path for path in found if "__pycache__" not in path.parts} == expected


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(installed):
    program = (
        "import rlplatform, rlplatform.envs, rlplatform.agents; print(rlplatform.__file__, rlplatform.agents.__file__)"
    )
    for file in run_installed(installed, "-c", program).split():
        assert pathlib.Path(file).is_relative_to(installed)
    program = "from rlplatform.presets import shipped; print(*shipped())"
    shipped = sorted(path.stem for path in (ROOT / "agents" / "presets").glob("*.toml"))
    assert run_installed(installed, "-c", program).split() == shipped
    assert "train" in run_installed(installed, "-m", "rlplatform", "--help")
    assert "rainbow" in run_installed(installed, "-m", "rlplatform", "list", "presets")


@pytest.mark.slow
def test_the_installed_runtime_needs_nothing_but_numpy_and_litert(installed):
    program = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tensorflow", "tf_keras", "keras", "gymnasium", "tomli_w", "tqdm", "tensorboard"}:
            raise AssertionError(name + " was asked for")
sys.meta_path.insert(0, Wall())
import rlplatform
from rlplatform.runtime import Policy
print(rlplatform.__version__, Policy.__name__)
"""
    assert run_installed(installed, "-c", program).split() == [rlplatform.__version__, "Policy"]
