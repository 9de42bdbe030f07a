"""PyTorch files and what is in them, made by torch: `python tests/golden/pytorch_files.py tests/golden/pytorch`.

Made with torch 2.13.0, safetensors 0.8.0 and numpy 2.4.6 on a CPU. Beside each file `NAME.pt` lies
`NAME.safetensors` with the tensors that a reader has to find, under the names it has to give them, as torch itself
stores them there. torch is imported where it is needed, so that the tests can be collected without it.
"""

import argparse
import inspect
import pathlib
import pickle
import sys
import zipfile


def network():
    """A small module of one's own: a convolution, two norms, a shared layer, buffers that are and are not saved."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = Net()
    net.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    net.twin = net.body[4]
    net.register_buffer("scale", torch.rand(3))
    net.register_buffer("cache", torch.rand(5), persistent=False)
    net.alone = nn.Parameter(torch.rand(2, 2))
    return net


def strided():
    """Views of all kinds; several share one storage."""
    import torch

    grid = torch.arange(24.0).reshape(4, 6)
    return {
        "whole": grid,
        "transposed": grid.t(),
        "rows": grid[1:3],
        "columns": grid[:, 2:5],
        "every_second": grid[::2, ::3],
        "expanded": torch.tensor([1.5, -2.0]).expand(3, 2),
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "bytes_of_another": torch.arange(4, dtype=torch.int32).view(torch.uint8)[3:9],
    }


def dtypes():
    """One tensor of every element type that a leaf may have."""
    import torch

    names = (
        *("float64", "float32", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn", "bool", "complex64"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
    return {name: torch.tensor([0.0, 1.0, 2.0, 96.0]).to(getattr(torch, name)) for name in names}


def training(net):
    """What a training script saves: the model, its moving average, the optimizer after a step, numbers and words."""
    import torch

    torch.manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.25)
    net.alone.sum().backward()
    optimizer.step()
    average = {name: tensor * 0.5 for name, tensor in net.state_dict().items()}
    saved = {
        "epoch": 10,
        "arch": "tiny",
        "ema": average,
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best_acc1": torch.tensor(93.5),
        "args": argparse.Namespace(lr=0.25, layers=[1, 2]),
    }
    return saved, net.state_dict()


def main(folder: pathlib.Path) -> None:
    """Writes all files."""
    import safetensors.torch
    import torch
    from torch import nn

    getsourcelines = inspect.getsourcelines
    inspect.getsourcelines = lambda _: (["source code\n"], 0)  # the legacy stream would quote torch's
    net = network()
    plain = net.state_dict()
    wrapped = nn.DataParallel(net).state_dict()
    saved, trained = training(network())
    contents = {
        "state_dict": (plain, plain),
        "training": (saved, trained),
        "strided": (strided(), strided()),
        "dtypes": (dtypes(), dtypes()),
        "module": (net, plain),
        "parameters": ({"state_dict": net.state_dict(keep_vars=True)}, plain),
        "data_parallel": ({"model_state_dict": wrapped}, wrapped),
    }
    for name, (content, expected) in contents.items():
        torch.save(content, folder / f"{name}.pt")
        torch.save(content, folder / f"{name}_legacy.pt", _use_new_zipfile_serialization=False)
        tensors = {key: tensor.detach().clone().contiguous() for key, tensor in expected.items()}
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors")
    for protocol in (0, 2, 4):
        content = {"model": plain, "epoch": 3}
        (folder / f"plain_{protocol}.pkl").write_bytes(pickle.dumps(content, protocol))
    inspect.getsourcelines = getsourcelines
    script = Part(Part(None))
    torch.jit.script(script).save(folder / "debug.pt")
    with zipfile.ZipFile(folder / "debug.pt") as whole, zipfile.ZipFile(folder / "script.pt", "w") as kept:
        for name in whole.namelist():
            if not name.endswith(".debug_pkl"):  # quotes torch's sources
                kept.writestr(name, whole.read(name))
    (folder / "debug.pt").unlink()
    safetensors.torch.save_file(script.state_dict(), folder / "script.safetensors")
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, folder / "quantized.pt")
    torch.save({"w": torch.eye(3).to_sparse()}, folder / "sparse.pt")
    torch.save({"w": torch.zeros(2, dtype=torch.complex128)}, folder / "complex128.pt")
    torch.save({"w": torch.ones(2, dtype=torch.complex64).conj()}, folder / "conjugate.pt")
    torch.save({"state": torch.optim.Adam(net.parameters()).state_dict(), "epoch": 3}, folder / "no_tensors.pt")
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    import torch
    from torch import nn

    class Net(nn.Module):
        """A class that no reader can import."""

    class Part(nn.Module):
        """The same for TorchScript, which has to know the types of all attributes."""

        def __init__(self, inner):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2, 3))
            self.register_buffer("mean", torch.rand(3))
            self.inner = inner if inner is not None else nn.Identity()

        def forward(self, x):
            return x

    main(pathlib.Path(sys.argv[1]))
