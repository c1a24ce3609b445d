"""`GET /v1/models` and `GET /v1/models/{id}`: the ids a request may name, and what they mean."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from engines.contract import EngineStatus
from models.errors import UnknownModel
from models.evaluation.compute import compute_share
from models.evaluation.verdicts import GateLimits, gate
from models.sampling import RecommendedSampling
from models.student.manifest import Manifest, PathFigures, StudentPath
from server.api.handler import Handler
from server.context import Context
from server.generation.sampling import recommended_for
from server.students.student import NamedModel, ServedStudent, named_models
from server.wire.replies import json_response
from server.wire.status import ModelFenhe, ModelList, ModelReply, QualityReply, SamplingReply, VerdictReply


def models_handler(context: Context) -> Handler:
    async def list_models(request: Request) -> Response:
        return json_response(ModelList(data=describe_models(context)))

    return list_models


def model_handler(context: Context) -> Handler:
    async def get_model(request: Request) -> Response:
        name = request.path_params["model"]
        for model in describe_models(context):
            if model.id == name:
                return json_response(model)
        raise UnknownModel(
            f"the model `{name[:200]}` does not exist; GET /v1/models lists those that do", param="model"
        )

    return get_model


def describe_models(context: Context) -> list[ModelReply]:
    students = {student.name: student for student in context.students}
    statuses = {name: student.engine.status() for name, student in students.items()}
    replies = []
    for model in named_models(context.students):
        student = students[model.student or context.students[0].name]
        described = _describe(context, student, model, statuses[student.name])
        replies.append(ModelReply(id=model.id, created=student.created, fenhe=described))
    return replies


def _describe(context: Context, student: ServedStudent, model: NamedModel, status: EngineStatus) -> ModelFenhe:
    manifest = student.manifest
    path = manifest.full_path if model.path is None else manifest.path(model.path)
    progress = next(progress for progress in status.paths if progress.path == path.name)
    return ModelFenhe(
        student=student.name,
        path=path.name,
        is_routed=model.path is None,
        modules=list(path.modules),
        width=path.width or None,
        exit=path.exit,
        share_of_layers=round(manifest.num_layers_on(path) / manifest.architecture.num_layers, 4),
        head=status.head,
        compute_share=round(compute_share(manifest, path, head=status.head), 4),
        verdicts=describe_verdicts(manifest, path, status.variant, context.router.limits),
        is_exit_trained=manifest.exit(path.exit).is_trained,
        is_loaded=progress.is_servable,
        num_loaded_stages=progress.num_loaded_stages,
        num_stages=progress.num_stages,
        max_context_tokens=student.max_context_tokens,
        quality=_quality(manifest, path),
        recommended_sampling=_sampling(recommended_for(context, student)),
    )


def _sampling(sampling: RecommendedSampling) -> SamplingReply | None:
    recommends_nothing = sampling == RecommendedSampling()
    return None if recommends_nothing else SamplingReply(**msgspec.structs.asdict(sampling))


def describe_verdicts(manifest: Manifest, path: StudentPath, variant: str, limits: GateLimits) -> list[VerdictReply]:
    """Of every task, language and head that was measured at the precision that serves. The full path with the exact
    head passes everything: it is what the others are compared with."""
    found = [one for one in manifest.figures if one.variant == variant]
    verdicts = [_verdict(one, limits) for one in found if one.path == path.name]
    if path == manifest.full_path:
        places = dict.fromkeys((one.task, one.language) for one in found)
        verdicts = [one for one in verdicts if one.head == "cheap"] + [_passed(*place) for place in places]
    return verdicts


def _verdict(figures: PathFigures, limits: GateLimits) -> VerdictReply:
    return VerdictReply(
        task=figures.task,
        language=figures.language,
        head=figures.head,
        fidelity=figures.verdict_fidelity,
        field=figures.verdict_field,
        gate=gate(figures, limits),
    )


def _passed(task: str, language: str) -> VerdictReply:
    return VerdictReply(task=task, language=language, head="exact", fidelity="passed", field="passed", gate="passed")


def _quality(manifest: Manifest, path: StudentPath) -> list[QualityReply]:
    return [
        QualityReply(
            variant=figure.variant,
            cross_entropy=figure.cross_entropy,
            text=figure.text,
            num_tokens=figure.num_tokens,
        )
        for figure in manifest.quality
        if figure.path == path.name
    ]
