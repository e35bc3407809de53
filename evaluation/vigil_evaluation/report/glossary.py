"""Terms of art on the pages, each in plain words: the tooltips of headings, and the entries under *How to read*."""

TERMS = {
    "Abstained": (
        "Share of all items for which the model neither clearly applies the label nor clearly does not: both answers, or "
        "neither, are plausible."
    ),
    "Accuracy": "Share of correct decisions at the threshold. Over all labels: share of items without a wrong decision.",
    "All labels": "Share of items without a wrong decision for any label (exact-match accuracy).",
    "Any action": "Share of the label's positives that get an action, for whatever label.",
    "Appeals": "Expected number of people who contest the action.",
    "AUROC": (
        "Probability that a random positive scores above a random negative: 0.5 for a random ranking, 1 for a perfect one. It "
        "is optimistic for rare labels; prefer average precision."
    ),
    "Average precision": (
        "How well positives rank above negatives: mean precision over all thresholds, from the share of positives (random "
        "ranking) to 1 (all positives first). It does not depend on the threshold."
    ),
    "BNSP AUC": (
        "Background negative, subgroup positive: how well the group's positives rank above the negatives of all other items. A "
        "low value means that harmful items about the group score too low and are missed."
    ),
    "Both correct": "Pairs in which both decisions are correct, of those whose label should change.",
    "Both wrong": "Number of pairs in which both decisions are wrong, of those whose label should change.",
    "Bound": "Worst value that the constraint's confidence leaves possible, compared with the requirement.",
    "BPSN AUC": (
        "Background positive, subgroup negative: how well the positives of all other items rank above the group's negatives. A "
        "low value means that harmless items about the group score too high and are flagged."
    ),
    "Calibration error": (
        "Mean distance between predicted probabilities and observed frequencies, corrected for the distance expected by chance."
        " At 0.05, of the items with a probability of 30%, about 25 or 35 in 100 are positive."
    ),
    "Corrected p": (
        "Probability of a result as extreme as this one anywhere in the search or comparison, if there were no real difference."
    ),
    "Cost of appeals": "Expected cost of deciding the appeals, in the unit of the policy.",
    "Cost": "Total cost of the action, in the unit of the policy.",
    "Decision changed": "Pairs whose two decisions differ, of those whose label should stay the same.",
    "Decisive": "Number of items whose action is due to this label.",
    "Difference": "Value of the slice minus that of all other items, in percentage points.",
    "False-positive gap, points": (
        "The group's false-positive rate minus that of all other items, in percentage points: above 0, harmless items about the"
        " group are flagged more often."
    ),
    "False-positive rate": "Share of the items without the label that are flagged all the same.",
    "Fitted on": "Items of the calibration split with a known target for the label.",
    "Flag lost": "Pairs whose first item is flagged and whose second one is not, though they should be decided alike.",
    "Flagged": "Share of all items, of known and unknown target, that reach the threshold.",
    "Flipped": "Items for which the two models decide differently about the label.",
    "Functionality": "What a group of items tests, such as negation or misspelling.",
    "Harm caught": "Share of the known positives, weighted by the severity of their labels, that get any action.",
    "Known": "Items whose target for the label is known. Unknown targets are never counted as negative.",
    "Label changes": "Pairs whose two items should be decided differently.",
    "Label stays": "Pairs whose two items should be decided alike.",
    "Log loss after": "Mean surprise at the true answers after calibration, cross-validated: lower is better.",
    "Log loss before": (
        "Mean surprise at the true answers before calibration: lower is better, and 0 only if every answer was predicted with "
        "certainty."
    ),
    "McNemar p": (
        "Probability of flips at least this one-sided if right-to-wrong and wrong-to-right flips were equally likely (McNemar's"
        " exact test)."
    ),
    "Mean change of probability": "How far the probability moves between the two items of a pair, on average.",
    "Method": "Formula that turns raw scores into probabilities; none leaves them unchanged.",
    "Missed": "Share of the label's positives that are neither flagged nor sent to review.",
    "Newly flagged": "Items that only the challenger flags.",
    "No longer flagged": "Items that only the champion flags.",
    "Overturned": "Expected number of actions that are reversed after an appeal.",
    "Partial AUROC": (
        "How well the model ranks where only very few negatives may be flagged: area under the ROC curve up to the false-"
        "positive rate at which recall is reported, scaled so that a random ranking has 0.5 and a perfect one 1."
    ),
    "Perturbation": "What was changed in the second item of a pair, such as a typo or an exchanged word.",
    "Positive": "Known items that do have the label.",
    "Precision": "Share of flagged items that do have the label.",
    "Recall": "Share of the items with the label that are flagged.",
    "Recall at FPR": "Largest share of the positives that can be flagged if at most this share of the negatives may be.",
    "Recall gap, points": (
        "The group's recall minus that of all other items, in percentage points: below 0, harmful items about the group are "
        "caught less often."
    ),
    "Rest": "Accuracy of all items outside the slice.",
    "Review threshold": "Lowest probability from which an item goes to a human reviewer.",
    "Reviewed": "Share of all items that reach the review threshold.",
    "Right to wrong": "Items that the champion decides correctly and the challenger does not.",
    "Same decision": "Number of pairs with the same decision on both items although the label should change.",
    "Set excludes no": (
        "Share of the items without the label for which the model rules out 'no', that is, wrongly takes the label for certain."
    ),
    "Set excludes yes": (
        "Share of the items with the label for which the model rules out 'yes', that is, wrongly takes them for harmless."
    ),
    "Severity": "Harm of a missed item of this label, as the policy weighs it.",
    "Status": (
        "Confirmed: the bound meets the requirement. Not confirmed: the value does, but it may be by chance. Violated: the "
        "value does not. Unknown: no target is known."
    ),
    "Subgroup AUC": "How well positives rank above negatives among the items that mention the group (AUROC within the group).",
    "Support": "What the number rests on: items, known targets, or labels in the mean.",
    "Target unknown": "Flips of items whose correct decision is not known.",
    "Threshold": "Lowest probability that is flagged. Precision, recall, false-positive rate and accuracy depend on it.",
    "Wrong to right": "Items that the champion decides wrongly and the challenger correctly.",
}

EVALUATION_TERMS = (
    *("Known", "Positive", "Threshold", "Accuracy", "Precision", "Recall", "False-positive rate", "Average precision"),
    *("AUROC", "Partial AUROC", "Calibration error"),
)
FAIRNESS_TERMS = ("Subgroup AUC", "BPSN AUC", "BNSP AUC", "Recall gap, points", "False-positive gap, points")
ABSTENTION_TERMS = ("Review threshold", "Missed", "Set excludes yes", "Set excludes no", "Abstained")
POLICY_TERMS = ("Bound", "Status", "Harm caught", "Appeals", "Overturned", "Any action", "Decisive", "Severity")
CALIBRATION_TERMS = ("Method", "Log loss before", "Log loss after")
SUITE_TERMS = ("Functionality", "All labels")
PAIR_TERMS = (
    "Label changes",
    "Both correct",
    "Same decision",
    "Both wrong",
    "Label stays",
    "Decision changed",
    "Flag lost",
    "Mean change of probability",
)
"""Entries under *How to read*, by the section that uses them."""
