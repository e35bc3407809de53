"""A guard's prompt as chat messages, for programs that render the chat template themselves."""

from collections.abc import Sequence

from vigil_data.items import Role
from vigil_data.prompts.build import CONTENT_HEADING, EMPTY, GAP, POLICY_HEADING, heading, question_text
from vigil_data.prompts.pieces import Order
from vigil_data.prompts.specs import PromptSpec


def chat_messages(
    spec: PromptSpec, order: Order, clause: str, segments: Sequence[tuple[Role, str]], *, system: bool
) -> list[dict[str, str]]:
    """Return the messages of one item and one label.

    Their chat template, rendered with ``add_generation_prompt``, has the tokens of :func:`vigil_data.prompts.assemble.assemble`
    unless the item is cut, has special tokens typed in it, or has a text with white space at an end.

    Args:
        spec: the recipe's ``model.prompt``.
        order: what stands first.
        clause: policy text of the label.
        segments: role and text of each of the item's segments.
        system: whether the chat template has a system message, see :func:`.chat_template.render`.
    """
    policy = POLICY_HEADING + clause
    content = CONTENT_HEADING + ("".join(heading("text", role) + text for role, text in segments) or EMPTY)
    first, second = (policy, content) if order == "policy_first" else (content, policy)
    body = GAP.join((first, second, question_text(spec)))
    if not system:
        return [{"role": "user", "content": spec.instruction + GAP + body}]
    return [{"role": "system", "content": spec.instruction}, {"role": "user", "content": body}]
