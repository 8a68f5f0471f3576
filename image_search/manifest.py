"""What an index was built with; recorded with the vectors and checked before every use."""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from image_search import __version__
from image_search.errors import IndexMismatchError
from image_search.program import program
from image_search.values import BUNDLED, DIMENSION, Metric, Precision, RecipeName


class ModelSpec(BaseModel):
    """What decides which embedding an image gets; in int8, the activation maxima do, too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Annotated[Literal["vgg16"], Field(description="Network.", examples=["vgg16"])] = (
        "vgg16"
    )
    weights: Annotated[str, Field(description="Name of the weights.", examples=["bundled"])]
    fingerprint: Annotated[
        str,
        Field(
            description="First 16 hex digits of the SHA-256 of all weights.",
            examples=["e6be4a9df98815c7"],
        ),
    ]
    input_size: Annotated[
        int, Field(description="Side of the network's input, in pixels.", examples=[32])
    ]
    preprocessing: Annotated[
        int, Field(description="Version of decoding and preprocessing.", examples=[2])
    ]
    precision: Annotated[
        Precision, Field(description="Precision of the network.", examples=["int8"])
    ]
    recipe: Annotated[
        RecipeName,
        Field(description="The recipe for embeddings.", examples=["components"]),
    ] = "none"
    recipe_fingerprint: Annotated[
        str,
        Field(
            description="First 16 hex digits of the SHA-256 of what was fitted; empty if none.",
            examples=["0d4c1c2f6a3b5e97"],
        ),
    ] = ""
    dimension: Annotated[int, Field(description="Length of an embedding.", examples=[512])] = (
        DIMENSION
    )

    def __str__(self) -> str:
        return (
            f"{self.architecture} with weights {self.weights} ({self.fingerprint}), input size "
            f"{self.input_size}, preprocessing {self.preprocessing}, {self.precision}, recipe "
            + " ".join(filter(None, [self.recipe, self.recipe_fingerprint]))
        )


class Manifest(BaseModel):
    """The facts of one namespace of an index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    # What an Embedder in int8 is made with; empty in float32.
    activation_maxima: tuple[float, ...]
    metric: Metric
    namespace: str
    created_at: datetime
    created_by: str
    # Why the input size is what it is; empty in indexes of earlier versions.
    input_size_reason: str = ""

    @classmethod
    def new(
        cls,
        model: ModelSpec,
        metric: Metric,
        namespace: str,
        activation_maxima: tuple[float, ...] = (),
        input_size_reason: str = "",
    ) -> Self:
        """The manifest of an index that is being created now, by this version."""
        return cls(
            model=model,
            activation_maxima=activation_maxima,
            metric=metric,
            namespace=namespace,
            created_at=datetime.now(UTC),
            created_by=f"image-search {__version__}",
            input_size_reason=input_size_reason,
        )

    def require_model(self, model: ModelSpec) -> None:
        """Raise IndexMismatchError, naming both sides, unless `model` built this index."""
        if self.model.weights == model.weights == BUNDLED and (
            self.model.fingerprint != model.fingerprint
        ):
            raise IndexMismatchError(
                f"the index was built with the bundled weights of another version "
                f"({self.model.fingerprint}), which this one no longer has (it has "
                f"{model.fingerprint}): build it again, with {program('worker')} refit SOURCE, or "
                "by setting IMAGE_SEARCH_INDEX to a new name and ingesting its images again"
            )
        # A name can differ (a path here, `imagenet` there) where the weights are the same.
        if model.model_copy(update={"weights": self.model.weights}) != self.model:
            raise IndexMismatchError(
                f"the index was built with {self.model}, but this would be {model}. "
                "Use the index's own weights, input size, precision and recipe, or another index; "
                f"{program('worker')} refit SOURCE gives this one a new model"
            )

    def require_metric(self, metric: Metric) -> None:
        """Raise IndexMismatchError, naming both sides, unless the index has this metric."""
        if metric != self.metric:
            raise IndexMismatchError(
                f"the index was built with the metric {self.metric}, but {metric} was requested: "
                "use the index's metric, or another index"
            )
