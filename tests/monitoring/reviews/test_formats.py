"""Queues out and decisions in: what a tool's reviewers answer is what is read, and content stays content."""

import base64
import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.reviews.decisions import CANNOT_TELL, Decision
from vigil_monitoring.queues.queue import Queue, QueueRecord, queue_table
from vigil_monitoring.reviews.content import QueueContent
from vigil_monitoring.reviews.formats import Export, FormatName, ImportOptions, export_queue, import_reviews
from vigil_monitoring.reviews.media_links import MediaLinks
from vigil_monitoring.reviews.policy import ReviewPolicy, load_policy

from .conftest import HOSTILE, ITEMS, LABELS, ReviewCase, picture, rows

TIME = "2026-11-02T10:00:00Z"
CHOICES = {1.0: "yes", 0.0: "no", None: CANNOT_TELL}


@pytest.fixture
def case(make_case: Callable[..., ReviewCase]) -> ReviewCase:
    return make_case()


def export(case: ReviewCase, name: FormatName, to: str, media: str | None = None, url: str | None = None, **more: Any) -> Path:
    content = QueueContent(case.queue, case.dataset)
    file = case.folder / to
    links = MediaLinks(case.folder / media if media else None, url, file)
    export_queue(name, content, file, Export(load_policy(case.taxonomy, None, content.asked), links, **more))
    return file


def read(case: ReviewCase, name: FormatName, file: Path, **options: Any) -> list[Decision]:
    return import_reviews(name, file, case.queue, ImportOptions(**options))[0]


def write_lines(file: Path, *values: Any) -> Path:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


def annotation(answers: dict[str, str], by: Any = 7, **more: Any) -> dict[str, Any]:
    """An annotation as Label Studio exports it."""
    control = {"to_name": "text", "type": "choices", "id": "x"}
    result = [{**control, "from_name": label, "value": {"choices": [of]}} for label, of in answers.items()]
    common = {"id": 3, "completed_by": by, "was_cancelled": False, "ground_truth": False, "lead_time": 30.0}
    return {**common, "created_at": TIME, "updated_at": TIME, "result": result, **more}


def test_export_queue_writes_tasks_and_configuration_of_label_studio(case: ReviewCase) -> None:
    file = export(case, "label-studio", "tasks.json")
    tasks = [task["data"] for task in json.loads(file.read_text())]
    assert [task["id"] for task in tasks] == [item.id for item in ITEMS]
    assert tasks[0]["text"] == "[context]\nwho wants some?\n\nme, and a lot of it!"
    assert tasks[3]["text"].startswith(HOSTILE)
    assert tasks[1]["image_2"] == "data:image/png;base64," + base64.b64encode(ITEMS[1].image[1]).decode()
    view = ET.fromstring(file.with_suffix(".xml").read_text())
    variables = {of.get("value", "").lstrip("$") for of in view if of.get("value", "").startswith("$")}
    assert variables == {"ask", "text", "image_1", "image_2", "audio_1"}
    assert all(variables <= set(task) for task in tasks), "Label Studio refuses tasks that lack a variable"
    questions = {of.get("name"): [choice.get("value") for choice in of] for of in view.iter("Choices")}
    assert questions == {
        "spam": ["yes", "no", CANNOT_TELL],
        "hate": ["yes", "no", CANNOT_TELL],
        "answer-confidence": ["not sure", "fairly sure", "sure"],
    }
    assert [of.get("required") for of in view.iter("Choices")] == [None, "true", None], "the last item does not ask for spam"
    headers = [of.get("value", "") for of in view.iter("Header")]
    assert "spam: Does the post advertise something that nobody asked for? Unwanted advertising" in headers[1]
    assert [value for value in headers if "$" in value] == ["$ask"], "Label Studio would take $free for a variable"
    assert {of.get("toName") for of in view.iter("Choices")} <= {of.get("name") for of in view}


def test_import_reviews_reads_annotations_of_several_people(case: ReviewCase) -> None:
    tasks = json.loads(export(case, "label-studio", "tasks.json").read_text())
    person = {"id": 8, "email": "ben@example.com", "first_name": "", "last_name": ""}
    sure = annotation({"spam": "yes", "hate": "no", "answer-confidence": "fairly sure"})
    tasks[0] |= {"id": 11, "annotations": [sure, annotation({"spam": "no"}, person, ground_truth=True, lead_time=12.0)]}
    tasks[1] |= {"id": 12, "annotations": [annotation({}, was_cancelled=True)]}
    for number, task in enumerate(tasks[2:], 13):
        task |= {"id": number, "annotations": []}
    file = case.folder / "export.json"
    file.write_text(json.dumps(tasks))
    decisions, skipped = import_reviews("label-studio", file, case.queue, ImportOptions("house 3"))
    moment = datetime(2026, 11, 2, 10, tzinfo=UTC)
    assert [of._replace(position="") for of in decisions] == [
        Decision("post-1", "spam", 1.0, "user 7", moment, "house 3", 0.75, minutes=0.25),
        Decision("post-1", "hate", 0.0, "user 7", moment, "house 3", 0.75, minutes=0.25),
        Decision("post-1", "spam", 0.0, "ben@example.com", moment, "house 3", adjudicated=True, minutes=0.2),
        Decision("post-2", "spam", None, "user 7", moment, "house 3", minutes=0.25),
        Decision("post-2", "hate", None, "user 7", moment, "house 3", minutes=0.25),
    ]
    assert skipped.lines() == ["4 tasks without annotations"]


def test_import_reviews_names_mistakes_of_a_label_studio_export(case: ReviewCase) -> None:
    file = case.folder / "export.json"
    data = {"id": "post-1", "labels": ["spam"], "policy_version": "house 3"}
    tasks = [
        {"id": 1, "data": {**data, "id": "elsewhere"}, "annotations": [annotation({"spam": "yes"})]},
        {"id": 2, "data": data, "annotations": [annotation({"spam": "maybe"}), annotation({"scam": "yes"}, id=4)]},
        {"id": 3, "data": {"text": "not ours"}, "annotations": []},
        {"id": 4, "data": data, "annotations": [annotation({"spam": "yes"}), annotation({"spam": "no"}, id=5)]},
        {"id": 5, "data": {**data, "policy_version": "house 2"}, "annotations": [annotation({"spam": "no"}, 9)]},
    ]
    file.write_text(json.dumps(tasks))
    with pytest.raises(UserError) as raised:
        read(case, "label-studio", file, policy_version="house 3")
    rest = "both under policy version house 3; keep one answer, or give the new one another policy version"
    leave = "leave such decisions out, or have the items reviewed again"
    assert [line.removeprefix(f"{file}: ") for line in raised.value.lines] == [
        "task 1, annotation 3: the queue has no item elsewhere",
        "task 2, annotation 3: spam is 'maybe', not one of yes, no, cannot tell",
        "task 2, annotation 4: the queue has no label scam; it has spam, hate",
        "task 3: has no id and labels; it is not from `vigil monitor queue`",
        f"task 4, annotation 5: reviewer user 7 answers 0 for spam of post-1, but 1 at {file}: task 4, annotation 3, {rest}",
        f"task 5, annotation 3: decided under policy version house 2, not house 3; {leave}",
    ]
    for damaged in ({"spam": "yes"}, {"annotations": [1]}, {"annotations": [annotation({}, result=[{"value": {"choices": 1}}])]}):
        file.write_text(json.dumps([{"id": 1, "data": data, **damaged}]))
        with pytest.raises(UserError, match="not an export of Label Studio in the format JSON; choose JSON, not JSON-MIN or CSV"):
            read(case, "label-studio", file)
    with pytest.raises(UserError, match="--mapping: is for --format coop only"):
        read(case, "label-studio", file, mapping=file)


def test_import_reviews_ignores_other_controls_of_label_studio(case: ReviewCase) -> None:
    note = {"from_name": "note", "to_name": "text", "type": "textarea", "value": {"text": ["odd"]}}
    empty = {"from_name": "spam", "to_name": "text", "type": "choices", "value": {}}
    file = case.folder / "export.json"
    task = {"id": 1, "data": {"id": "post-1", "labels": ["hate"]}}
    found = annotation({"hate": "yes"}, lead_time=None)
    file.write_text(json.dumps([{**task, "annotations": [{**found, "result": [note, *found["result"]]}]}]))
    [decision] = read(case, "label-studio", file)
    assert (decision.label, decision.value, decision.minutes) == ("hate", 1.0, None)
    file.write_text(json.dumps([{**task, "annotations": [{**found, "result": [empty]}]}]))
    with pytest.raises(UserError, match="task 1, annotation 3: spam is '', not one of yes, no, cannot tell"):
        read(case, "label-studio", file)


def test_export_queue_writes_a_sheet_without_formulas(case: ReviewCase) -> None:
    with pytest.raises(UserError, match="--format csv: refers to pictures and audio by address; give --media DIR"):
        export(case, "csv", "sheet.csv")
    assert not (case.folder / "sheet.csv").exists()
    file = export(case, "csv", "sheet.csv", "media")
    with file.open(encoding="utf-8-sig", newline="") as opened:
        sheet = list(csv.DictReader(opened))
    assert [(row["id"], row["label"]) for row in sheet[:2]] == [("post-1", "spam"), ("post-1", "hate")]
    assert sheet[-1]["id"] == "'=1+1"
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in sheet for cell in row.values())
    names = sheet[2]["media"].splitlines()
    assert [(case.folder / name).read_bytes() for name in names] == list(ITEMS[1].image)
    for row, value in zip(sheet, ("Yes", "no", "cannot  tell", "1", "", "", "", "", "", "", "0.5"), strict=True):
        row["value"] = value
    with file.open("w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.DictWriter(opened, list(sheet[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(sheet)
    decisions, skipped = import_reviews("csv", file, case.queue, ImportOptions(reviewer="ann", time=TIME))
    assert [(of.id, of.label, of.value) for of in decisions] == [
        ("post-1", "spam", 1.0),
        ("post-1", "hate", 0.0),
        ("post-2", "spam", None),
        ("post-2", "hate", 1.0),
        ("=1+1", "hate", 0.5),
    ]
    assert {(of.reviewer, of.policy_version) for of in decisions} == {("ann", "house 3")}
    assert skipped.lines() == ["6 questions without an answer"]
    with pytest.raises(UserError, match=r"sheet\.csv:2: reviewer is missing \(and in 4 more rows\)"):
        read(case, "csv", file, time=TIME)


COOP = """
coop:
  actions: {act-yes: yes, act-no: no, act-skip: cannot tell}
  policies: {pol-1: spam, pol-2: hate}
  others: no
"""


def callback(id_: str, action: str, *policies: str, **more: Any) -> dict[str, Any]:
    """The body of an action callback, with the time that the receiver adds."""
    body = {
        "item": {"id": id_, "typeId": "post"},
        "action": {"id": action},
        "policies": [{"id": of, "name": "x"} for of in policies],
    }
    return {**body, "rules": [], "custom": {}, "actorEmail": "ann@example.com", "time": TIME, **more}


def test_export_queue_writes_requests_for_coop(case: ReviewCase) -> None:
    with pytest.raises(UserError, match="--format coop: needs --item-type"):
        export(case, "coop", "items.jsonl", "media")
    file = export(case, "coop", "items.jsonl", "media", "https://media.example.com/", item_type="post")
    [request] = [json.loads(line) for line in file.read_text().splitlines()]
    assert [of["id"] for of in request["items"]] == [item.id for item in ITEMS]
    second = request["items"][1]
    assert (second["typeId"], second["data"]["text"], second["data"]["questions"]) == ("post", "Call now and win", "spam, hate")
    assert [url.rpartition("/")[0] for url in second["data"]["images"]] == ["https://media.example.com"] * 2
    assert (case.folder / "media" / second["data"]["images"][0].rpartition("/")[2]).read_bytes() == ITEMS[1].image[0]


def test_import_reviews_reads_callbacks_of_coop(case: ReviewCase) -> None:
    mapping = case.folder / "coop.yaml"
    mapping.write_text(COOP)
    file = write_lines(
        case.folder / "callbacks.jsonl",
        callback("post-1", "act-yes", "pol-1"),
        callback("post-2", "act-no"),
        callback("post-3", "act-skip", "pol-2"),
        callback("=1+1", "act-yes"),
        callback("a-report", "act-yes"),
        callback("post-1", "act-ban", "pol-9"),
        callback("post-2", "act-yes", "pol-1", actorEmail=None, rules=[{"id": "r", "name": "r"}]),
    )
    decisions, skipped = import_reviews("coop", file, case.queue, ImportOptions("house 3", mapping=mapping))
    assert [(of.id, of.label, of.value) for of in decisions] == [
        ("post-1", "spam", 1.0),
        ("post-1", "hate", 0.0),
        ("post-2", "spam", 0.0),
        ("post-2", "hate", 0.0),
        ("post-3", "hate", None),
        ("=1+1", "hate", 1.0),
    ]
    assert {(of.reviewer, of.policy_version) for of in decisions} == {("ann@example.com", "house 3")}
    assert skipped.lines() == [
        "1 actions on items that the queue does not ask about",
        "1 actions that the mapping does not name",
        "1 actions of rules, which no reviewer took",
    ]


def test_import_reviews_names_mistakes_of_coop(case: ReviewCase) -> None:
    mapping = case.folder / "coop.yaml"
    mapping.write_text(COOP)
    file = write_lines(
        case.folder / "callbacks.jsonl",
        callback("post-1", "act-yes"),
        callback("post-1", "act-yes", "pol-9"),
        {"appealId": "1"},
        callback("post-2", "act-no", time=None),
    )
    with pytest.raises(UserError) as raised:
        read(case, "coop", file, mapping=mapping)
    assert [line.removeprefix(f"{file}:") for line in raised.value.lines] == [
        "1: the action answers yes, but no policy says for which of several labels",
        "2: policy pol-9 is not in the mapping; add it under coop.policies",
        "3: not the body of an action callback: it has no item, action or policies with an id",
        "4: time is missing (and in 1 more row)",
    ]
    mapping.write_text(COOP.replace("hate", "scam"))
    with pytest.raises(UserError, match=r"coop\.yaml: coop\.policies: pol-2 is about scam, which is no label of the queue"):
        read(case, "coop", file, mapping=mapping)
    with pytest.raises(UserError, match="--format coop: needs --mapping"):
        read(case, "coop", file)


def test_export_queue_writes_an_item_a_line(case: ReviewCase) -> None:
    lines = [json.loads(line) for line in export(case, "jsonl", "items.jsonl", "pictures").read_text().splitlines()]
    assert [line["id"] for line in lines] == [item.id for item in ITEMS]
    assert lines[0]["text"] == [{"role": "context", "text": "who wants some?"}, {"role": "body", "text": "me, and a lot of it!"}]
    assert (case.folder / lines[1]["image"][0]["url"]).read_bytes() == ITEMS[1].image[0]
    assert lines[-1]["ask"] == ["hate"]


def test_content_lacks_erased_items_and_says_so(case: ReviewCase, tmp_path: Path) -> None:
    other = tmp_path / "others"
    write(other, [ITEMS[0], Item("stranger", ("x",))])
    content = QueueContent(case.queue, Dataset(other))
    assert list(content.labels) == ["post-1"]
    [warning] = content.warnings()
    assert "lacks 5 of 6 items (post-2, post-3, hostile, …), such as erased ones" in warning
    write(tmp_path / "strangers", [Item("stranger", ("x",))])
    with pytest.raises(UserError, match="has none of the 6 items of the queue, such as post-1"):
        QueueContent(case.queue, Dataset(tmp_path / "strangers"))
    reviewed = Queue(queue_table(rows(["post-1"], ask=[]), LABELS), QueueRecord("probability", LABELS))
    with pytest.raises(UserError, match="the queue asks for no answers"):
        QueueContent(reviewed, case.dataset)


NASTY = ("=1+1", "'=1+1", "-5", "'", 'a"b', "a;b,c", "a\u2028b", "\N{ARABIC LETTER ALEF}", "1e5", "true", "a  b", "#")
"""Ids that a format could change."""


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("nasty")
    write(folder, [Item(id_, (f"={HOSTILE}",), (picture(),)) for id_ in NASTY])
    return Dataset(folder)


ANSWERS = st.dictionaries(
    st.sampled_from(NASTY), st.tuples(*(st.sampled_from([1.0, 0.0, None]) for _ in LABELS)), min_size=1, max_size=8
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answers=ANSWERS)
def test_import_reviews_reads_what_reviewers_answered_in_each_format(
    nasty: Dataset, tmp_path_factory: pytest.TempPathFactory, answers: dict[str, tuple[float | None, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    queue = Queue(queue_table(rows(list(answers)), LABELS), QueueRecord("probability", LABELS))
    content = QueueContent(queue, nasty)
    wanted = {(id_, label): value for id_, values in answers.items() for label, value in zip(LABELS, values, strict=True)}
    mapping = folder / "coop.yaml"
    mapping.write_text(COOP.replace("others: no", "others: unknown"))
    names: tuple[FormatName, ...] = ("jsonl", "csv", "label-studio", "coop")
    for name in names:
        file = folder / f"out.{'json' if name == 'label-studio' else name}"
        links, coop = MediaLinks(folder / "media", None, file), name == "coop"
        export_queue(name, content, file, Export(ReviewPolicy(None, "v1"), links, "post" if coop else None))
        answered = _answer_as_tool(name, file, wanted)
        decisions, _ = import_reviews(name, answered, queue, ImportOptions("v1", "ann", TIME, mapping if coop else None))
        assert {(of.id, of.label): of.value for of in decisions} == wanted
        assert {of.policy_version for of in decisions} == {"v1"}


def _answer_as_tool(name: str, file: Path, wanted: dict[tuple[str, str], float | None]) -> Path:
    """Fill in what a queue asks, as the tool's reviewers do, and return the file that it would give."""
    lines = file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    if name == "jsonl":
        decisions = []
        for line in map(json.loads, lines):
            for label in line["ask"]:
                value = wanted[line["id"], label]
                about = {"id": line["id"], "label": label, "policy_version": line["policy_version"]}
                decisions.append({**about, "value": CANNOT_TELL if value is None else value, "reviewer": "ann", "time": TIME})
        return write_lines(file.with_name("answered.jsonl"), *decisions)
    if name == "csv":
        with file.open(encoding="utf-8-sig", newline="") as opened:
            sheet = list(csv.DictReader(opened))
        for row, value in zip(sheet, wanted.values(), strict=True):
            row["value"] = CHOICES[value]
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, list(sheet[0]))
            writer.writeheader()
            writer.writerows(sheet)
        return file
    if name == "label-studio":
        tasks = json.loads(file.read_text())
        for task in tasks:
            data = task["data"]
            task["annotations"] = [annotation({label: CHOICES[wanted[data["id"], label]] for label in data["labels"]})]
        file.write_text(json.dumps(tasks))
        return file
    ids = [item["id"] for line in lines for item in json.loads(line)["items"]]
    actions = {1.0: "act-yes", 0.0: "act-no", None: "act-skip"}
    policies = dict(zip(LABELS, ("pol-1", "pol-2"), strict=True))
    bodies = [callback(id_, actions[wanted[id_, label]], policies[label]) for id_ in ids for label in LABELS]
    return write_lines(file.with_name("callbacks.jsonl"), *bodies)
