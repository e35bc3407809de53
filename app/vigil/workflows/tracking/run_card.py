"""Card of a run that is pushed: README.md in the Hugging Face hub's format."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vigil_training.runs.run import Run


def run_card(run: "Run", checkpoint: str) -> str:
    """Return the card: licence, tags, dataset, metrics and lineage as the hub reads them, then what the folder holds.

    Args:
        run: a finished run.
        checkpoint: name of the checkpoint that is pushed.
    """
    from vigil.workflows.export_run import provenance_of
    from vigil_serving.bundle.model_card import PIPELINE_TAGS, flatten, front_matter, hub_facts, markdown_cell

    provenance = provenance_of(run, checkpoint)
    recipe = run.recipe
    modalities = [name for name in ("text", "image", "audio") if getattr(recipe.model.encoders, name) is not None]
    pipeline = PIPELINE_TAGS.get("+".join(modalities))
    facts = hub_facts(provenance.name, provenance.lineage, provenance.evaluation, pipeline)
    head = front_matter(provenance.licences, "vigil", pipeline, ["content-safety", "multi-label", *modalities], facts)
    lines = [
        f"# {markdown_cell(recipe.name)}",
        "",
        f"A training run of Vigil: a multi-label content-safety model over {', '.join(modalities)}.",
        "",
        "```",
        "vigil pull SOURCE --to runs/NAME",
        "vigil evaluate runs/NAME --data DATASET",
        "vigil export runs/NAME --to bundles/NAME",
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {markdown_cell(name)} | {markdown_cell(value)} |" for name, value in flatten(provenance.lineage)),
    ]
    for split, metrics in provenance.evaluation.items():
        lines += ["", f"## Evaluation on {markdown_cell(split)}", ""]
        lines += ["| label | known | positive | AP | AUROC |", "|---|---|---|---|---|"]
        for label, found in metrics["overall"]["labels"].items():
            numbers = ("-" if found[name] is None else f"{found[name]:.3f}" for name in ("average_precision", "auroc"))
            lines.append(f"| {markdown_cell(label)} | {found['known']} | {found['positive']} | {' | '.join(numbers)} |")
    return f"---\n{head}---\n\n" + "\n".join(lines) + "\n"
