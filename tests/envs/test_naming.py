"""What an environment's name stands for."""

import functools
import pathlib
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest

from rlplatform import envs
from rlplatform.config import EnvironmentConfig
from rlplatform.envs import files, naming, probes
from rlplatform.errors import UserError

MY_ENV = """
    import dataclasses
    import gymnasium
    from rlplatform.envs import probes

    @dataclasses.dataclass
    class Settings:
        length: int = 4

    class MyEnv(probes.Counting):
        def __init__(self, length=4):
            super().__init__(lengths=(Settings(length).length,))

    class MyOtherEnv(MyEnv):
        pass

    def make_it():
        return MyEnv(length=2)

    not_callable = 3
    """


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, forgets_imports: None) -> Iterator[pathlib.Path]:
    """An empty current folder; what is imported from it and registered is forgotten afterwards."""
    registry = dict(gym.registry)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gym.registry.clear()
    gym.registry.update(registry)


def write(path: pathlib.Path, text: str = MY_ENV) -> pathlib.Path:
    """Writes a Python file."""
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_a_registered_id_is_found_in_gymnasiums_registry() -> None:
    assert naming.find("CartPole-v1") is gym.registry["CartPole-v1"]


def test_every_listed_id_is_a_registered_one_that_can_be_named() -> None:
    ids = envs.registered()
    assert ids == sorted(ids)
    assert {"CartPole-v1", "LunarLander-v3"} <= set(ids) <= set(gym.registry)
    assert all(naming.find(id) is gym.registry[id] for id in ids)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("CartPole", "unknown environment 'CartPole'; did you mean 'CartPole-v1'?"),
        ("cartpole-v1", "unknown environment 'cartpole-v1'; did you mean 'CartPole-v1'?"),
        ("CartPol-v0", "unknown environment 'CartPol-v0'; did you mean 'CartPole-v1'?"),
        ("CartPole-v7", "unknown environment 'CartPole-v7'; did you mean 'CartPole-v1'?"),
        ("LunarLander-v2", "unknown environment 'LunarLander-v2'; did you mean 'LunarLander-v3'?"),
        ("phys2d/CartPol", "unknown environment 'phys2d/CartPol'; did you mean 'phys2d/CartPole-v1'?"),
        ("Qwxyz-v0", "unknown environment 'Qwxyz-v0'; `rlplatform list envs` shows"),
        ("", "no environment is given; give a registered id such as CartPole-v1"),
        ("no_such_module:CartPole-v1", "there is no module 'no_such_module' to import"),
        ("no_such_file.py:MyEnv", "the file no_such_file.py cannot be read from"),
        ("rlplatform.envs.probes:Catsh", "rlplatform.envs.probes holds no class or function 'Catsh'"),
        ("rlplatform.envs.probes:Catsh", "did you mean 'Catch'?"),
        ("<__main__:MyEnv>", "pass it again from Python, or put it into a file"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_that_is(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        naming.find(text)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_module_is_imported_for_the_ids_that_it_registers(folder: pathlib.Path) -> None:
    write(
        folder / "my_games.py",
        """
        import gymnasium
        gymnasium.register("My/Counting-v3", "rlplatform.envs.probes:Counting", max_episode_steps=9)
        """,
    )
    env = envs.make_single(EnvironmentConfig(id="my_games:My/Counting-v3"))
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps) == ("My/Counting-v3", 9)
    with pytest.raises(UserError, match="my_games holds no class or function 'My/Countin-v3'"):
        naming.find("my_games:My/Countin-v3")


@pytest.mark.parametrize("place", ["my_env", "my_env.py", "./my_env.py", "{folder}/my_env.py"])
@pytest.mark.parametrize(("name", "length"), [("MyEnv", 4), ("make_it", 2)])
def test_a_class_or_function_of_a_module_or_file_makes_environments(
    folder: pathlib.Path, place: str, name: str, length: int
) -> None:
    write(folder / "my_env.py")
    env = envs.make(EnvironmentConfig(id=f"{place.format(folder=folder)}:{name}", num_envs=2))
    assert isinstance(env, envs.SerialVectorEnv)
    assert env.get_attr("lengths") == ((length,), (length,))


def test_a_file_without_a_name_is_refused_with_the_classes_in_it(folder: pathlib.Path) -> None:
    write(folder / "my_env.py")
    for text, nearest in [("my_env.py", "choices: MyEnv, MyOtherEnv"), ("my_env.py:MyEnvs", "did you mean 'MyEnv'?")]:
        with pytest.raises(UserError) as refusal:
            naming.find(text)
        assert nearest in str(refusal.value)
    with pytest.raises(UserError, match="no class or function 'not_callable'"):
        naming.find("my_env.py:not_callable")


def test_a_file_that_fails_while_loading_is_named_with_its_error(folder: pathlib.Path) -> None:
    write(folder / "broken.py", "x = 1 / 0")
    write(folder / "wrong.py", "def f(:")
    write(folder / "needy.py", "import no_such_package")
    for text, words in [
        ("broken.py:E", "broken.py fails while loading: ZeroDivisionError"),
        ("broken:E", "ZeroDivisionError"),
        ("wrong.py:E", "wrong.py fails while loading: SyntaxError"),
        ("needy.py:E", "No module named 'no_such_package'"),
        ("needy:E", "No module named 'no_such_package'"),
    ]:
        with pytest.raises(UserError) as refusal:
            naming.find(text)
        assert words in str(refusal.value)
    assert not [name for name in sys.modules if name.startswith("rlplatform_file_broken")]


def test_a_file_may_import_the_files_beside_it(folder: pathlib.Path) -> None:
    (folder / "deep").mkdir()
    write(folder / "deep" / "neighbour.py", "LENGTHS = (6,)")
    write(
        folder / "deep" / "my_env.py",
        """
        import neighbour
        from rlplatform.envs.probes import Counting
        class MyEnv(Counting):
            def __init__(self):
                super().__init__(neighbour.LENGTHS)
        """,
    )
    env: Any = envs.make_single(EnvironmentConfig(id="deep/my_env.py:MyEnv"))
    assert env.lengths == (6,)


def test_a_file_is_loaded_once_and_again_when_it_has_changed(folder: pathlib.Path) -> None:
    path = write(folder / "my_env.py")
    first, again = naming.find("my_env.py:MyEnv"), naming.find(f"{folder}/my_env.py:MyEnv")
    assert first is again
    write(path, MY_ENV + "\n    CHANGED = True\n")
    changed = naming.find("my_env.py:MyEnv")
    assert changed is not first
    assert sys.modules[changed.__module__].CHANGED


def test_files_of_the_same_name_do_not_get_mixed_up(folder: pathlib.Path) -> None:
    for name, length in [("one", 1), ("two", 2)]:
        (folder / name).mkdir()
        write(folder / name / "my_env.py", MY_ENV.replace("length=4", f"length={length}"))
    one: Any = envs.make_single(EnvironmentConfig(id="one/my_env.py:MyEnv"))
    two: Any = envs.make_single(EnvironmentConfig(id="two/my_env.py:MyEnv"))
    assert (one.lengths, two.lengths) == ((1,), (2,))


def test_a_class_from_a_file_can_be_pickled(folder: pathlib.Path) -> None:
    write(folder / "my-env.py")
    env: Any = envs.make_single(EnvironmentConfig(id="my-env.py:MyEnv"))
    env.reset(seed=5)
    copy = pickle.loads(pickle.dumps(env))
    assert type(copy) is type(env)
    assert copy.identity == 5


def test_a_files_module_has_the_same_name_in_every_process(folder: pathlib.Path) -> None:
    write(folder / "my_env.py")
    code = "from rlplatform.envs import files; print(files.load_file('my_env.py').__name__)"
    root = pathlib.Path(naming.__file__).parents[2]
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root)}
    )
    assert output.stdout.strip() == files.load_file("my_env.py").__name__


def test_a_callable_is_named_where_it_can_be_imported_again(folder: pathlib.Path) -> None:
    assert envs.id_of(probes.Catch) == "rlplatform.envs.probes:Catch"
    assert envs.id_of(gym.make) == "gymnasium.envs.registration:make"
    write(folder / "my_env.py")
    name = envs.id_of(naming.find("my_env.py:MyEnv"))  # type: ignore[arg-type]
    assert name == f"{folder.resolve()}/my_env.py:MyEnv"
    assert naming.find(name) is naming.find("my_env.py:MyEnv")


def test_a_callable_that_cannot_be_imported_again_gets_a_text_that_is_refused() -> None:
    def local() -> gym.Env[Any, Any]:
        return probes.Catch()

    for factory in (local, lambda: probes.Catch(), functools.partial(probes.Catch, 9), probes.Catch().reset):
        text = envs.id_of(factory)
        assert text.startswith("<")
        assert text.endswith(">")
        with pytest.raises(UserError, match="no importable name"):
            naming.find(text)
