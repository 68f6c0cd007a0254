"""One episode: a question about a picture in, a sealed trajectory out.

Promise: `run_episode` and `converse` end within their deadline and return a trajectory whose tokens are sealed whatever happened to
it. They raise only for what is not an episode: an `InputError` (bad picture or question), a `SealError` (a bug), or a
cancellation.
"""

from __future__ import annotations

from mmsr_ray.agent.conversation import Conversation, Ended, Parts
from mmsr_ray.agent.dialogue import Dialogue, TokenDialogue
from mmsr_ray.agent.pieces import InputError, PictureError, QuestionError
from mmsr_ray.agent.ports import EngineError, Generate, Tools
from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.agent.tokens import Codec, SealError
from mmsr_ray.agent.workflows import WORKFLOWS
from mmsr_ray.config import AgentConfig
from mmsr_ray.types import Outcome, Sample, Sampling, Trajectory

__all__ = ["EngineError", "Generate", "InputError", "PictureError", "QuestionError", "SealError", "Tools", "converse", "run_episode"]


async def run_episode(
    sample: Sample,
    *,
    index: int,
    workflow: str,
    generate: Generate,
    tools: Tools,
    codec: Codec,
    prompts: PromptSet,
    limits: AgentConfig,
    sampling: Sampling,
) -> Trajectory:
    """Answer one sample by one workflow ("on_demand", "direct" or "rag") with an engine. The reward is left open.

    Raises as `converse` does.
    """
    parts = Parts(tools, prompts, limits, sampling)
    return await converse(sample, index=index, workflow=workflow, transcript=TokenDialogue(codec, generate), parts=parts)


async def converse(sample: Sample, *, index: int, workflow: str, transcript: Dialogue, parts: Parts) -> Trajectory:
    """Answer one sample by one workflow in an empty `transcript`, of tokens or of messages.

    A broken tool or engine, or the deadline, gives INFRA_ERROR; a policy that breaks the rules gives POLICY_ERROR.
    Raises InputError, SealError, and ValueError for an unknown workflow.
    """
    if workflow not in WORKFLOWS:
        raise ValueError(f"there is no workflow {workflow!r}: choose one of {', '.join(WORKFLOWS)}")
    if not sample.question.strip():
        raise QuestionError(f"sample {sample.uid} has an empty question")
    talk = Conversation(sample, transcript, parts)
    answer, outcome, detail = None, Outcome.OK, ""
    try:
        answer = await WORKFLOWS[workflow](talk)
    except Ended as end:
        outcome, detail = end.outcome, end.detail
    return Trajectory(
        uid=sample.uid,
        index=index,
        workflow=workflow,
        question=sample.question,
        turns=tuple(talk.turns),
        outcome=outcome,
        detail=detail,
        answer=answer,
        tokens=talk.transcript.seal(),
        generate_seconds=talk.generate_seconds,
        tool_seconds=talk.tool_seconds,
    )
