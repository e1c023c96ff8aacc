"""Tasks are found by name without being imported, and one that is broken is nobody else's trouble."""

# ruff: noqa: F811, since fixtures are imported

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe_example import no_hang
from site_example import TASK, Site, as_found, site  # noqa: F401

import zoo
from zoo import registry
from zoo.backbones.names import list_backbones
from zoo.data.module import create_data
from zoo.errors import ZooError
from zoo.optim import Optim
from zoo.plugin_trial import check_tasks
from zoo.recipe import flat, groups, keys, parse, parser, resolve
from zoo.registry import find_task, list_tasks, notices, register_task, task_arguments, task_outline
from zoo.tasks.base import PretextTask
from zoo.tasks.output import TaskOutput
from zoo.testing import check_task
from zoo.train.settings import Training

BUILT_IN = sorted(
    path.stem.replace("_", "-")
    for path in (Path(zoo.__file__).parent / "tasks" / "image").glob("*.py")
    if path.stem not in ("__init__", "base")
)

NO_ARGUMENTS = "{data: {name: digits}, backbone: {name: test_resnet}, task: {name: mine}, trainer: {max_steps: 2}}"


def listed() -> dict[str, registry.TaskEntry]:
    return {entry.name: entry for entry in list_tasks()}


def refusal(call) -> str:
    with pytest.raises(ZooError) as caught:
        call()
    return str(caught.value)


def session_task(name: str, qualname: str = "Mine", module: str = "__main__") -> type:
    """A task as a cell of a notebook defines it."""
    body = {
        "__module__": module,
        "__qualname__": qualname,
        "__doc__": "An idea.\n\nMore.",
        "views": lambda self, batch: (),
        "forward": lambda self, views: TaskOutput(views),
    }
    return type(qualname, (PretextTask,), body)


# ---- built in ------------------------------------------------------------------------------------


def test_built_in_tasks_are_listed_without_importing_them():
    code = """import json, sys
from zoo.backbones.names import list_backbones
from zoo.registry import find_task, list_tasks, notices, task_arguments
names = [task.name for task in list_tasks()]
found = [len(list_backbones()), notices(), {name: task_arguments(name) for name in names}]
heavy = {name.split('.')[0] for name in sys.modules} & {'torch', 'timm', 'lightning', 'numpy', 'jsonargparse', 'yaml'}
print(json.dumps([names, sorted(heavy), [name for name in sys.modules if name.startswith('zoo.')]]))"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"ZOO_NO_PLUGINS": "1"},
    )
    names, heavy, ours = json.loads(done.stdout)
    assert names == BUILT_IN and heavy == [] and not any(name.startswith("zoo.tasks") for name in ours)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_read_of_a_built_in_task_is_what_importing_it_shows(name):
    entry, task = listed()[name], find_task(name)
    assert entry.target == f"{task.__module__}:{task.__qualname__}" and entry.origin == "zoo" and entry.problem is None
    assert task.name == name and issubclass(task, PretextTask) and find_task(name) is task
    assert entry.needs == task.needs and entry.uses_labels == ("label" in task.needs)
    assert entry.summary == inspect.getmodule(task).__doc__.split("\n")[0] and entry.summary
    signature = {
        key: parameter.default
        for key, parameter in list(inspect.signature(task.__init__).parameters.items())[1:]
        if key != "backbone"
    }
    written = {key: ast.literal_eval(text) for key, text in task_arguments(name).items()}
    assert written == signature and list(written) == list(signature)
    values = {"task.name": name, "backbone.name": "resnet18"}
    real = parser(task, {"data": create_data, "optim": Optim, "trainer": Training})
    assert _told(parser(task_outline(name), groups())) == _told(real)
    assert all(row["about"] for row in keys(values))


def _told(parser) -> list[tuple]:
    """What a parser of recipes knows of each key: with the outlines of signatures as with what is imported."""
    return [
        (
            action.dest,
            str(getattr(action, "_typehint", None) or action.type),
            action.default,
            action.help,
            action.required,
        )
        for action in parser._actions
    ]


@pytest.mark.parametrize("needs", ['needs = ("image", "label")', 'needs: tuple[str, ...] = ("image", "label")', ""])
def test_what_is_read_of_a_file_in_the_folder_of_tasks(needs, tmp_path, monkeypatch):
    """A task that reads labels is marked as such, and required arguments are listed too, though no built-in task has
    any.
    """
    (tmp_path / "tasks").mkdir()
    init = "def __init__(self, backbone, width: int, *, depth: int = 2): ..."
    code = f"@register_task('labelled')\nclass Labelled(PretextTask):\n    {needs}\n    {init}"
    (tmp_path / "tasks" / "labelled.py").write_text(f'"""The idea.\n\nMore."""\n{code}\n')
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    registry._built_in.cache_clear()
    try:
        entry = listed()["labelled"]
        assert (entry.target, entry.origin, entry.summary) == ("zoo.tasks.labelled:Labelled", "zoo", "The idea.")
        assert entry.needs == (("image", "label") if needs else ("image",)) and entry.uses_labels == bool(needs)
        assert task_arguments("labelled") == {"width": "", "depth": "2"}
    finally:
        registry._built_in.cache_clear()


def test_an_unknown_task_and_its_nearest():
    assert refusal(lambda: find_task("simclrr")) == "'simclrr' is not a task; did you mean simclr?"
    assert "'mea' is not a task; did you mean mae" in refusal(lambda: zoo.create_task("mea", None))
    assert all(name in refusal(lambda: find_task("quetzal")) for name in BUILT_IN[:5])
    assert refusal(lambda: task_arguments("simclrr")) == "'simclrr' is not a task; did you mean simclr?"
    for odd in ("", None, 3, "zoo.tasks.image.simclr", "../simclr", "SIMCLR"):
        assert "is not a task" in refusal(lambda: find_task(odd))


def test_backbones_are_those_of_timm_and_of_text_and_audio():
    import timm

    assert list_backbones()[: len(timm.list_models())] == timm.list_models() and len(list_backbones()) > 1000
    assert {"bert", "roberta", "modernbert", "audio"} <= set(list_backbones()) - set(timm.list_models())
    assert list_backbones("resnet1*") == timm.list_models("resnet1*") != []
    assert list_backbones("nothing*") == []


# ---- the decorator -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "My-Task", "my_task", "my task", "-my", "\u00fcber", "my.task", "a\n", 3, None, object, b"my-task"]
)
def test_names_that_are_none(name):
    assert 'can\'t name a task; write @register_task("my-task"), in lower-case letters' in refusal(
        lambda: register_task(name)
    )


@pytest.mark.parametrize(
    "thing", [int, object, TaskOutput, lambda backbone: backbone, 3, None, "simclr", PretextTask.views]
)
def test_what_is_no_task(thing):
    assert "can't be registered as the task 'mine': it doesn't inherit from zoo.PretextTask" in refusal(
        lambda: register_task("mine")(thing)
    )
    assert "mine" not in listed()


def test_a_taken_name():
    words = "the task name 'simclr' is taken by zoo.tasks.image.simclr:SimCLR; choose another for __main__:Mine"
    assert refusal(lambda: register_task("simclr")(session_task("simclr"))) == words
    real = find_task("simclr")
    assert refusal(lambda: register_task("simclr")(session_task("simclr"))) == words and find_task("simclr") is real
    assert "is taken by" in refusal(lambda: register_task("simclr")(session_task("simclr", "SimCLR", "zoo.mine")))
    register_task("mine")(session_task("mine"))
    assert "taken by __main__:Mine; choose another for __main__:Other" in refusal(
        lambda: register_task("mine")(session_task("mine", "Other"))
    )
    assert "taken by __main__:Mine" in refusal(lambda: register_task("mine")(session_task("mine", "Mine", "plugin_x")))


@pytest.mark.parametrize(
    ("arguments", "odd"),
    [("api_key: str = ''", "api_key"), ("token=None", "token"), ("*, my_password: 'int' = 3", "my_password")],
)
def test_arguments_that_look_like_secrets(arguments, odd):
    made = {}
    exec(f"def init(self, backbone, width: int = 1, {arguments}): ...", made)  # noqa: S102
    said = refusal(lambda: register_task("mine")(type("Mine", (PretextTask,), {"__init__": made["init"]})))
    assert said == (
        f"the task 'mine' has an argument {odd}, and what looks like a secret would be published in recipes and cards; "
        "have the task read it from the environment instead, or give it another name"
    )
    assert "mine" not in listed()


def test_arguments_that_only_sound_like_secrets():
    def init(self, backbone, mask_token: bool = True, class_token: bool = True, tokens: int = 3, keyboard: str = ""):
        pass

    register_task("mine")(type("Mine", (PretextTask,), {"__init__": init, "__module__": "__main__"}))
    assert "mine" in listed()


def test_a_cell_of_a_notebook_may_be_run_twice():
    first, second = session_task("mine"), session_task("mine")
    assert register_task("mine")(first) is first and first.name == "mine" and find_task("mine") is first
    register_task("mine")(second)
    assert find_task("mine") is second
    entry = listed()["mine"]
    assert (entry.origin, entry.target, entry.summary, entry.needs, entry.problem) == (
        "this session",
        "__main__:Mine",
        "An idea.",
        ("image",),
        None,
    )
    backbone = zoo.create_backbone("test_resnet", size=32)
    made = zoo.create_task("mine", backbone)
    assert type(made) is second and made.backbone is backbone and second(backbone).backbone is backbone
    assert task_arguments("mine") == made.arguments == {}, "a task that writes no constructor takes a backbone alone"
    assert [key for key in dict(flat(resolve(parse(NO_ARGUMENTS, "-")))) if key.startswith("task")] == ["task.name"]


# ---- tasks of other packages ---------------------------------------------------------------------


def test_a_plugin_is_listed_without_being_imported_and_imported_when_named(site):
    site.install("zoo-plugin", {"theirs": "plugin_a:Task"}, version="1.2.3", plugin_a=TASK.format(name="theirs"))
    entry = listed()["theirs"]
    assert (entry.origin, entry.target, entry.summary, entry.problem) == (
        "zoo-plugin 1.2.3",
        "plugin_a:Task",
        "What zoo-plugin does",
        None,
    )
    assert (
        notices() == []
        and find_task("simclr")
        and "theirs" in refusal(lambda: find_task("their"))
        and site.imported() == []
    )
    task = find_task("theirs")
    assert (
        task.__module__ == "plugin_a"
        and task.name == "theirs"
        and find_task("theirs") is task
        and site.imported() == ["plugin_a"]
    )
    assert task_arguments("theirs") == {"width": "", "depth": "2", "words": "'a b'"}
    assert listed()["theirs"] == entry
    assert zoo.create_task("theirs", zoo.create_backbone("test_resnet", size=32), width=3).arguments == {
        "width": 3,
        "depth": 2,
        "words": "a b",
    }


def test_a_plugin_that_is_imported_by_hand_from_where_its_entry_point_doesnt_point(site):
    site.install("zoo-plugin", {"theirs": "plugin_a.api:Task"})
    package = site.folder / "plugin_a"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "task.py").write_text(TASK.format(name="theirs"))
    (package / "api.py").write_text("from plugin_a.task import Task")
    task = importlib.import_module("plugin_a.task").Task
    assert find_task("theirs") is task
    assert "is taken by plugin_a.task:Task" in refusal(lambda: register_task("theirs")(session_task("theirs", "Task")))


def test_a_name_that_a_package_declares_is_taken_before_it_is_imported(site):
    site.install("zoo-plugin", {"theirs": "plugin_a:Task"}, plugin_a=TASK.format(name="theirs"))
    assert "is taken by plugin_a:Task; choose another for __main__:Mine" in refusal(
        lambda: register_task("theirs")(session_task("theirs"))
    )
    assert site.imported() == []


BROKEN = {
    "raise ImportError('no module named frobnicate')": "can't be imported: ImportError: no module named frobnicate",
    "raise RuntimeError('no\\nGPU')": "can't be imported: RuntimeError: no",
    "raise SystemExit(3)": "can't be imported: SystemExit: 3",
    "import sys; sys.exit('bye')": "can't be imported: SystemExit: bye",
    "import plugin_that_is_nowhere": "can't be imported: ModuleNotFoundError: No module named 'plugin_that_is_nowhere'",
    "raise BaseException('odd')": "can't be imported: BaseException: odd",
    "1 +": "can't be imported: SyntaxError",
    "\0": "can't be imported: ",
    "x = 3": "can't be imported: AttributeError: module 'plugin_a' has no attribute 'Task'",
    "class Task: pass": "plugin_a:Task can't be registered as the task 'theirs': it doesn't inherit from "
    "zoo.PretextTask",
    "Task = 3": "plugin_a:Task can't be registered as the task 'theirs': it doesn't inherit from zoo.PretextTask",
    TASK.format(name="another"): "plugin_a:Task is registered as 'another'; give the entry point and the decorator the "
    "same name",
    TASK.format(name="theirs") + "raise OSError('at the very end')": "can't be imported: OSError: at the very end",
    TASK.format(name="simclr"): "can't be imported: the task name 'simclr' is taken by zoo.tasks.image.simclr:SimCLR",
}


@pytest.mark.parametrize(("code", "words"), BROKEN.items(), ids=[f"broken{number}" for number in range(len(BROKEN))])
def test_a_broken_plugin_is_named_with_its_error_and_breaks_nothing_else(code, words, site):
    site.install("zoo-fine", {"fine": "plugin_fine:Task"}, plugin_fine=TASK.format(name="fine"))
    site.install("zoo-broken", {"theirs": "plugin_a:Task"}, version="0.9", plugin_a=code)
    names = [*BUILT_IN, "fine", "theirs"]
    assert sorted(listed()) == sorted(names) and notices() == []
    for _ in range(2):  # it doesn't mend itself by being used
        with pytest.raises(ZooError, match="^the task theirs of zoo-broken 0.9 can't be ") as caught:
            find_task("theirs")
        assert words in str(caught.value)
        assert (caught.value.__cause__ is not None) == ("can't be imported" in words)
    assert "zoo-broken 0.9" in refusal(lambda: task_arguments("theirs")) and "zoo-broken 0.9" in refusal(
        lambda: zoo.create_task("theirs", None)
    )
    assert (
        sorted(listed()) == sorted(names)
        and find_task("fine").name == "fine"
        and find_task("simclr").__name__ == "SimCLR"
    )


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("RuntimeError('no\\nGPU')", "RuntimeError: no GPU"),
        ("SystemExit(0)", "SystemExit: 0"),
        ("BaseException('odd')", "BaseException: odd"),
    ],
)
def test_a_plugin_whose_constructor_raises_is_named(raised, said, site):
    code = TASK.format(name="theirs").replace(
        "super().__init__(backbone)", f"super().__init__(backbone)\n        raise {raised}"
    )
    site.install("zoo-broken", {"theirs": "plugin_a:Task"}, version="0.9", plugin_a=code)
    backbone = zoo.create_backbone("test_resnet", size=32)
    assert refusal(lambda: zoo.create_task("theirs", backbone, width=3, depth=2)) == (
        "the task theirs of zoo-broken 0.9 can't be made with {'width': 3} and the backbone test_resnet: " + said
    )
    assert "of zoo-broken 0.9 can't be made with its defaults" in refusal(lambda: zoo.create_task("theirs", backbone))


def test_an_interruption_is_not_taken_for_a_broken_plugin(site):
    site.install("zoo-slow", {"theirs": "plugin_a:Task"}, plugin_a="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        find_task("theirs")


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        (
            "theirs",
            "plugin_nowhere.task:Task",
            "zoo-broken 1.0 has no package 'plugin_nowhere', which its entry point names",
        ),
        ("theirs", "json", "its entry point in zoo-broken 1.0, 'json', is not package.module:Class"),
        ("theirs", "json:", "is not package.module:Class"),
        (
            "Theirs_2",
            "json:Task",
            "zoo-broken 1.0 calls it 'Theirs_2'; a task's name is lower-case words joined by hyphens",
        ),
    ],
)
def test_what_metadata_alone_shows_to_be_wrong(name, target, problem, site):
    site.install("zoo-broken", {name: target})
    assert problem in listed()[name].problem
    assert refusal(lambda: find_task(name)) == f"the task {name} can't be used: {listed()[name].problem}"
    assert find_task("simclr").name == "simclr"


def test_two_packages_that_claim_one_name(site):
    site.install("zoo-one", {"theirs": "plugin_a:Task", "other": "plugin_a:Other"}, plugin_a=TASK.format(name="theirs"))
    site.install("zoo-two", {"theirs": "plugin_b:Task"}, version="2.0", plugin_b=TASK.format(name="theirs"))
    problem = listed()["theirs"].problem
    assert problem in [
        f"{one} and {other} both claim the name; uninstall one"
        for one, other in (("zoo-one 1.0", "zoo-two 2.0"), ("zoo-two 2.0", "zoo-one 1.0"))
    ]
    assert refusal(lambda: find_task("theirs")) == f"the task theirs can't be used: {problem}"
    assert listed()["other"].problem is None and site.imported() == []


def test_a_package_that_claims_a_built_in_name_doesnt_get_it(site):
    site.install(
        "zoo-thief",
        {"simclr": "plugin_a:Task", "theirs": "plugin_b:Task"},
        plugin_a=TASK.format(name="simclr"),
        plugin_b=TASK.format(name="theirs"),
    )
    assert notices() == ["zoo-thief 1.0 also has a task 'simclr'; the built-in one is used"]
    assert (
        listed()["simclr"].origin == "zoo"
        and find_task("simclr").__module__ == "zoo.tasks.image.simclr"
        and site.imported() == []
    )
    assert find_task("theirs").__module__ == "plugin_b"


def test_of_a_package_that_is_on_the_path_twice_the_first_counts(site, tmp_path, monkeypatch):
    site.install("zoo_Plugin", {"theirs": "plugin_a:Task"}, plugin_a="raise OSError")
    nearer = Site(tmp_path / "nearer", monkeypatch)
    nearer.install("zoo-plugin", {"theirs": "plugin_a:Task"}, version="2.0", plugin_a=TASK.format(name="theirs"))
    assert listed()["theirs"].origin == "zoo-plugin 2.0" and listed()["theirs"].problem is None
    find_task("theirs")
    assert nearer.imported() == ["plugin_a"] and site.imported() == []


@pytest.mark.parametrize(
    ("points", "metadata"),
    [
        (b"[zoo.tasks]\nx = \xff\xfe\n", None),
        (b"\xff\xfe\x00", None),
        (b"[zoo.tasks]\nword\n", None),
        (b"[zoo.tasks]\nx = a:B\n", b"\xff\xfe"),
        (b"[zoo.tasks]\nx = a:B\n", b""),
        (b"[zoo.tasks]\nx = a:B\n", b"Name: zoo-damaged\n"),
    ],
)
def test_damaged_metadata_of_any_package_breaks_nothing(points, metadata, site):
    site.install("zoo-plugin", {"theirs": "plugin_a:Task"}, plugin_a=TASK.format(name="theirs"))
    site.install("zoo-damaged", points, metadata=metadata)
    assert sorted(listed()) == sorted([*BUILT_IN, "theirs"]) and find_task("theirs").name == "theirs"
    (notice,) = notices()
    assert "zoo_damaged-1.0.dist-info, whose metadata can't be read (" in notice and notice.endswith("is left out")


def test_plugins_can_be_switched_off(site, monkeypatch):
    site.install(
        "zoo-plugin", {"theirs": "plugin_a:Task", "simclr": "plugin_a:Task"}, plugin_a=TASK.format(name="theirs")
    )
    monkeypatch.setenv("ZOO_NO_PLUGINS", "1")
    assert sorted(listed()) == BUILT_IN and notices() == []


# ---- zoo list tasks --check ----------------------------------------------------------------------


def test_check_tasks_finds_what_breaks_on_import_and_names_the_culprit(site):
    site.install("zoo-raises", {"raises": "plugin_a:Task"}, plugin_a="raise ImportError('no frobnicate')")
    site.install("zoo-talks", {"talks": "plugin_b:Task"}, plugin_b="raise RuntimeError('first line\\nlast line')")
    site.install(
        "zoo-dies", {"dies": "plugin_c:Task"}, version="3.1", plugin_c="import os; print('imported'); os._exit(5)"
    )
    site.install("zoo-leaves", {"leaves": "plugin_d:Task"}, plugin_d="import os; os._exit(0)")
    site.install("zoo-lacks", {"lacks": "plugin_nowhere:Task"})
    entries = [entry for entry in list_tasks() if entry.origin != "zoo" or entry.name == "mae"]
    register_task("mine")(session_task("mine"))
    problems = {entry.name: entry.problem for entry in check_tasks([*entries, listed()["mine"]], timeout=120)}
    assert problems == {
        "raises": "the task raises of zoo-raises 1.0 can't be imported: ImportError: no frobnicate",
        "talks": "the task talks of zoo-talks 1.0 can't be imported: RuntimeError: first line last line",
        "dies": "zoo-dies 3.1: importing it ends the process, with exit code 5",
        "leaves": "zoo-leaves 1.0: importing it ends the process, with exit code 0",
        "lacks": "zoo-lacks 1.0 has no package 'plugin_nowhere', which its entry point names",
        "mae": None,
        "mine": None,
    }
    assert not any(name.startswith("plugin") for name in sys.modules)


def test_check_tasks_gives_up_on_one_that_hangs_and_ends_all_that_it_started(site):
    site.install(
        "zoo-hangs",
        {"hangs": "plugin_a:Task"},
        plugin_a=f"""
import subprocess, time
child = subprocess.Popen(["sleep", "1000"])
open({str(site.folder / "pid")!r}, "w").write(str(child.pid))
time.sleep(1000)
""",
    )
    with no_hang(60):
        (checked,) = check_tasks([listed()["hangs"]], timeout=10)
    assert checked.problem == "zoo-hangs 1.0: importing it takes more than 10 seconds"
    pid = int((site.folder / "pid").read_text())
    for _ in range(100):  # killed at once; init collects it when it gets round to it
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


# ---- an entry point alone ------------------------------------------------------------------------

UNMARKED = TASK.replace('@register_task("{name}")\n', "").replace("from zoo.registry import register_task\n", "")


def test_an_entry_point_alone_registers_a_class_under_the_name_it_gives(site):
    site.install("zoo-plugin", {"theirs": "plugin_a:Task"}, plugin_a=UNMARKED)
    task = find_task("theirs")
    assert task.name == "theirs" and find_task("theirs") is task and task_arguments("theirs")["depth"] == "2"
    backbone = zoo.create_backbone("test_resnet", size=32)
    assert type(zoo.create_task("theirs", backbone, width=3)) is task
    assert "is taken by plugin_a:Task" in refusal(lambda: register_task("theirs")(session_task("theirs")))


def test_the_decorator_may_stand_beside_an_entry_point_of_the_same_name_alone(site):
    site.install("zoo-plugin", {"theirs": "plugin_a:Task"}, plugin_a=TASK.format(name="theirs"))
    assert find_task("theirs").name == "theirs"
    site.install("zoo-other", {"others": "plugin_b:Task"}, plugin_b=TASK.format(name="another"))
    said = refusal(lambda: find_task("others"))
    assert said == (
        "the task others of zoo-other 1.0 can't be used: plugin_b:Task is registered as 'another'; give the entry "
        "point and the decorator the same name"
    )
    assert "another" not in listed()


def test_one_class_has_one_name(site):
    site.install("zoo-plugin", {"theirs": "plugin_a:Task", "twice": "plugin_a:Task"}, plugin_a=UNMARKED)
    assert find_task("theirs").name == "theirs"
    assert "is registered as 'theirs'" in refusal(lambda: find_task("twice")) and find_task("theirs").name == "theirs"


def test_check_task_takes_a_name_and_a_class_that_only_an_entry_point_names(site):
    site.install("zoo-plugin", {"theirs": "plugin_a:Task"}, plugin_a=UNMARKED)
    task = importlib.import_module("plugin_a").Task
    assert task.name == ""
    for given in (task, "theirs"):  # a promise that comes after the name's: the docstring has no link
        with pytest.raises(AssertionError, match="the docstring of Task .* has a link"):
            check_task(given)
    assert task.name == "theirs"
    with pytest.raises(AssertionError, match="'thiers' is not a task; did you mean theirs"):
        check_task("thiers")
