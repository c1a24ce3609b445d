"""`GET /v1/models` and `GET /v1/models/{id}`: the ids a request may name, and honestly what they mean."""

from starlette.requests import Request
from starlette.responses import Response

from engines.contract import EngineStatus
from models.errors import UnknownModel
from models.manifest import Manifest, StudentPath
from server.chat import Handler
from server.context import Context
from server.replies import json_response
from server.schema import ModelFenhe, ModelList, ModelReply, QualityReply
from server.student import ServedModel, served_models


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
    status = context.engine.status()
    manifest = context.student.manifest
    return [
        ModelReply(id=model.id, created=context.student_created, fenhe=_describe(context, manifest, model, status))
        for model in served_models(manifest)
    ]


def _describe(context: Context, manifest: Manifest, model: ServedModel, status: EngineStatus) -> ModelFenhe:
    path = manifest.path(model.path)
    progress = next(progress for progress in status.paths if progress.path == path.name)
    return ModelFenhe(
        student=manifest.name,
        path=path.name,
        modules=list(path.modules),
        exit=path.exit,
        share_of_layers=round(_num_layers(manifest, path) / manifest.architecture.num_layers, 4),
        is_exit_trained=manifest.exit(path.exit).is_trained,
        is_loaded=progress.is_servable,
        num_loaded_stages=progress.num_loaded_stages,
        num_stages=progress.num_stages,
        max_context_tokens=context.max_context_tokens,
        quality=_quality(manifest, path),
    )


def _num_layers(manifest: Manifest, path: StudentPath) -> int:
    return sum(manifest.num_layers_in(stage) for stage in manifest.stages(path))


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
