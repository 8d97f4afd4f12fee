"""Train, export and measure the sample models of qconvert.

`python sample_models/train.py` writes the images, trains the three models, exports them to ONNX, compares each file
with torch in onnxruntime and records its top-1 on the evaluation images in `accuracy.json`. `--only NAME` does one
model, `--check` measures the files that are there and trains nothing. Everything is seeded and runs on one thread.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
DIGITS = HERE / "digits"
SEED = 2024
SIDE = 32
CLASSES = 10
EVALUATION_PER_CLASS = 40
CALIBRATION_PER_CLASS = 10
OPSET = 17

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Split:
    """Row numbers of `load_digits`; calibration is a part of training, evaluation shares no row with either."""

    training: Labels
    calibration: Labels
    evaluation: Labels


def split_rows(labels: Labels) -> Split:
    """Keep the last rows of every class for evaluation and draw the calibration rows from the others.

    The same sequence of digits comes again about every 130 rows, which looks like one block of rows per writer (the
    data carries no writer names). With the last rows kept apart, most evaluation images are from blocks not trained on.
    """
    rng = np.random.default_rng(SEED)
    by_class = [np.flatnonzero(labels == digit) for digit in range(CLASSES)]
    training = [rows[:-EVALUATION_PER_CLASS] for rows in by_class]
    return Split(
        training=np.sort(np.concatenate(training)),
        calibration=np.sort(np.concatenate([rng.permutation(rows)[:CALIBRATION_PER_CLASS] for rows in training])),
        evaluation=np.sort(np.concatenate([rows[-EVALUATION_PER_CLASS:] for rows in by_class])),
    )


def upscale(digit: npt.NDArray[np.float64]) -> Pixels:
    """Turn one 8x8 digit with values 0..16 into a 32x32 greyscale picture."""
    small = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def write_images(pixels: Pixels, labels: Labels, split: Split) -> None:
    """Write the calibration folder, the evaluation class folders and the CSV of labels; replaces what was there."""
    shutil.rmtree(DIGITS, ignore_errors=True)
    (DIGITS / "calibration").mkdir(parents=True)
    for row in split.calibration:
        Image.fromarray(pixels[row]).save(DIGITS / "calibration" / f"digit_{row:04d}.png", optimize=True)
    lines = sorted((f"{labels[row]}/digit_{row:04d}.png", int(labels[row]), int(row)) for row in split.evaluation)
    for file, _, row in lines:
        path = DIGITS / "evaluation" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(path, optimize=True)
    with (DIGITS / "evaluation_labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", "label"])
        writer.writerows((file, label) for file, label, _ in lines)


def read_evaluation() -> tuple[Pixels, Labels]:
    """Read the evaluation pictures, [N, 32, 32], and their labels, [N], back from the files."""
    with (DIGITS / "evaluation_labels.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    pixels = np.stack([np.asarray(Image.open(DIGITS / "evaluation" / line["file"])) for line in lines])
    return pixels, np.array([int(line["label"]) for line in lines], dtype=np.int64)


def preprocess(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Compute (pixel / 255 - 0.5) / 0.5 and add the channel axis: [N, 32, 32] to [N, 1, 32, 32]."""
    scaled: npt.NDArray[np.float32] = pixels.astype(np.float32) / np.float32(255)
    return ((scaled - np.float32(0.5)) / np.float32(0.5))[:, None]


# -------------------------------------------------------------------------------------------------------------- models


class ConvNormClip(nn.Sequential):
    """Convolution, batch normalization and, unless `linear`, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        if not linear:
            self.relu6 = nn.ReLU6()


class InvertedResidual(nn.Module):
    """MobileNetV2 block (arXiv 1801.04381): expand 1x1, depthwise 3x3, project 1x1, Add where shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNormClip(inputs, hidden, 1)
        self.depthwise = ConvNormClip(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = ConvNormClip(hidden, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class DigitsCnn(nn.Module):
    """Small MobileNetV2: a stem, five inverted residual blocks (three with an Add), a 1x1 head, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormClip(1, 16, 3, stride=2)
        self.block1 = InvertedResidual(16, 16, stride=1, expansion=2)
        self.block2 = InvertedResidual(16, 24, stride=2, expansion=4)
        self.block3 = InvertedResidual(24, 24, stride=1, expansion=4)
        self.block4 = InvertedResidual(24, 40, stride=2, expansion=4)
        self.block5 = InvertedResidual(40, 40, stride=1, expansion=4)
        self.head = ConvNormClip(40, 128, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(128, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block5(self.block4(self.block3(self.block2(self.block1(self.stem(image))))))
        logits: Tensor = self.classifier(self.flatten(self.pool(self.head(x))))
        return logits


class Dense(nn.Module):
    """x @ weight + bias with weight [inputs, outputs]: one MatMul and one Add in ONNX, without a Transpose."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key and value projections, each a MatMul and a bias Add."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.query, self.key, self.value, self.output = (Dense(dim, dim) for _ in range(4))

    def split_heads(self, x: Tensor, tokens: int) -> Tensor:
        return x.reshape(-1, tokens, self.heads, self.width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens, dim = int(x.shape[1]), self.heads * self.width
        query, key, value = (self.split_heads(layer(x), tokens) for layer in (self.query, self.key, self.value))
        weights = functional.softmax(query @ key.transpose(2, 3) * self.width**-0.5, dim=-1)
        mixed: Tensor = self.output((weights @ value).transpose(1, 2).reshape(-1, tokens, dim))
        return mixed


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)) with GELU between the two layers."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.up, self.gelu, self.down = Dense(dim, 2 * dim), nn.GELU(), Dense(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        mlp: Tensor = self.down(self.gelu(self.up(self.norm2(x))))
        return x + mlp


class DigitsVit(nn.Module):
    """Small vision transformer (arXiv 2010.11929): 64 patches of 4x4, 3 blocks of width 64, mean over the tokens."""

    PATCH, DIM, HEADS, DEPTH = 4, 64, 4, 3

    def __init__(self) -> None:
        super().__init__()
        self.tokens = (SIDE // self.PATCH) ** 2
        self.patches = nn.Conv2d(1, self.DIM, self.PATCH, self.PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.tokens, self.DIM))
        self.blocks = nn.ModuleList(TransformerBlock(self.DIM, self.HEADS) for _ in range(self.DEPTH))
        self.norm = nn.LayerNorm(self.DIM)
        self.classifier = nn.Linear(self.DIM, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).reshape(-1, self.DIM, self.tokens).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(self.norm(x).mean(dim=1))
        return logits


class DigitsGru(nn.Module):
    """GRU of width 96 that reads the 32 rows of the image from top to bottom; its last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIDE, 96)
        self.classifier = nn.Linear(96, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        _, last = self.gru(image.squeeze(1).transpose(0, 1))
        logits: Tensor = self.classifier(last.squeeze(0))
        return logits


@dataclass(frozen=True)
class Recipe:
    """How one model is built and trained."""

    build: Callable[[], nn.Module]
    epochs: int
    rate: float


RECIPES = {
    "digits_cnn": Recipe(DigitsCnn, epochs=40, rate=4e-3),
    "digits_vit": Recipe(DigitsVit, epochs=60, rate=2e-3),
    "digits_gru": Recipe(DigitsGru, epochs=60, rate=4e-3),
}


# ------------------------------------------------------------------------------------------------------------ training


def augment(images: Tensor) -> Tensor:
    """Rotate by up to 10 degrees, scale by up to 10 % and shift by up to 2 pixels; new pixels are black (-1)."""
    count = len(images)
    angle, scale = (torch.rand(count) - 0.5) * (20 * torch.pi / 180), 1 + (torch.rand(count) - 0.5) * 0.2
    shift = (torch.rand(count, 2, 1) - 0.5) * (2 * 2 * 2 / SIDE)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    grid = functional.affine_grid(torch.cat([turn, shift], 2), list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def train(recipe: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """Train for the fixed number of epochs; no image picks the epoch, the last weights are kept."""
    torch.manual_seed(SEED)
    model, batch = recipe.build(), 64
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.epochs * steps)
    for epoch in range(recipe.epochs):
        total = 0.0
        for rows in torch.randperm(len(images))[: steps * batch].split(batch):
            loss = functional.cross_entropy(model(augment(images[rows])), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"  epoch {epoch + 1:3d}  loss {total / steps:.4f}", flush=True)
    return model.eval()


# -------------------------------------------------------------------------------------------------- export and measure


def export(model: nn.Module, path: Path) -> None:
    """Write `model` to ONNX with a free batch axis; BatchNormalization nodes stay as they were trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, SIDE, SIDE),),
        path,
        input_names=["image"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )
    tidied = tidy(ir.load(path), set(model.state_dict()))
    tidied.doc_string = "Handwritten digits; image is (pixel / 255 - 0.5) / 0.5, greyscale 32x32, white ink on black."
    ir.save(tidied, path)


def tidy(model: ir.Model, parameters: set[str]) -> ir.Model:
    """Fold what is constant and give every node and value a readable name; fuses and replaces no operator."""
    for node in model.graph:
        if node.op_type == "GRU":
            node.resize_inputs(4)  # the initial state is zero, which is also what an absent one means
    optimizer.fold_constants(model, input_size_limit=1 << 20, output_size_limit=1 << 20)
    for tidying in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedNodesPass(),
    ):
        model = tidying(model).model
    for node in model.graph:
        node.name = (node.name or node.op_type).lstrip("/")
        formal = onnx.defs.get_schema(node.op_type, OPSET).inputs
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.name not in parameters:
                value.name = f"{node.name}.{formal[index].name}"
        for value in node.outputs:
            if value.name and not value.is_graph_output():
                value.name = value.name.lstrip("/")
    return passes.ShapeInferencePass()(model).model


def logits(path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Run the ONNX file on the CPU: [N, 1, 32, 32] to [N, 10]."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


def compare(model: nn.Module, path: Path, images: npt.NDArray[np.float32]) -> float:
    """Return the largest difference between onnxruntime and torch over batches of 1, 7 and all images."""
    differences = []
    for batch in (1, 7, len(images)):
        with torch.no_grad():
            expected = model(torch.from_numpy(images[:batch])).numpy()
        differences.append(float(np.abs(logits(path, images[:batch]) - expected).max()))
    return max(differences)


def measure(names: list[str]) -> None:
    """Measure the named models on the evaluation images and bring `accuracy.json` up to date."""
    pixels, labels = read_evaluation()
    record = HERE / "accuracy.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    for name in names:
        right = logits(HERE / name / "model.onnx", preprocess(pixels)).argmax(axis=1) == labels
        results[name] = {"top1": round(100 * float(right.mean()), 2), "samples": len(labels)}
        print(f"{name}: top-1 {results[name]['top1']:.2f} % ({int(right.sum())} of {len(labels)})")
    record.write_text(json.dumps({name: results[name] for name in RECIPES if name in results}, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------- main


def train_and_export(names: list[str]) -> None:
    """Write the images, then train, export and compare each named model."""
    digits, targets = load_digits(return_X_y=True)
    labels = np.asarray(targets, dtype=np.int64)
    pixels = np.stack([upscale(digit) for digit in digits.reshape(-1, 8, 8)])
    split = split_rows(labels)
    write_images(pixels, labels, split)
    images, evaluation = preprocess(pixels[split.training]), preprocess(read_evaluation()[0])
    for name in names:
        print(f"{name}: {len(images)} training images")
        model = train(RECIPES[name], torch.from_numpy(images), torch.from_numpy(labels[split.training]))
        path = HERE / name / "model.onnx"
        export(model, path)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"  {count} parameters, {path.stat().st_size} bytes")
        print(f"  largest difference to torch {compare(model, path, evaluation):.1e}")


def main() -> None:
    """Read the command line and do the work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=RECIPES, help="do one model instead of all three")
    parser.add_argument("--check", action="store_true", help="measure the files that are there, train nothing")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(RECIPES)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    if not arguments.check:
        train_and_export(names)
    measure(names)


if __name__ == "__main__":
    main()
