"""Writes the Keras files of this folder and what they hold, with Keras itself (it needs keras, h5py and a backend).

    KERAS_BACKEND=jax python tests/golden/keras_files.py

A small network with a nested model, BatchNormalization, a Lambda layer (whose code is in the file) and one training
step (so that there is optimizer state), saved as `keras.keras`, `keras.weights.h5` and the older
`keras_legacy.h5`; `keras_weights.npz` holds the weights as Keras has them, `0`, `1`, ... in Keras's order.
"""

import pathlib

import keras
import numpy as np

FOLDER = pathlib.Path(__file__).parent


def network() -> keras.Model:
    block = keras.Sequential([keras.layers.Dense(4, name="inner"), keras.layers.Dense(3, name="outer")], name="block")
    twice = eval(compile("lambda values: values * 2", "keras_files.py", "eval"))  # its file's name is stored with it
    images = keras.Input((6, 6, 2))
    hidden = keras.layers.Conv2D(4, 3, name="conv")(images)
    hidden = keras.layers.BatchNormalization(name="norm")(hidden)
    hidden = keras.layers.DepthwiseConv2D(3, name="depthwise")(hidden)
    hidden = keras.layers.Lambda(twice, output_shape=(2, 2, 4), name="twice")(hidden)
    hidden = keras.layers.Flatten(name="flatten")(hidden)
    hidden = keras.layers.Dense(5, activation="relu", name="dense")(hidden)
    hidden = keras.layers.Dense(4, name="dense_again")(hidden)
    return keras.Model(images, block(hidden), name="golden")


def main() -> None:
    keras.utils.set_random_seed(0)
    model = network()
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(8, 6, 6, 2)), rng.normal(size=(8, 3)), verbose=0)
    for name in ("keras.keras", "keras_legacy.h5"):
        model.save(FOLDER / name)
    model.save_weights(FOLDER / "keras.weights.h5")
    values = {str(index): np.asarray(weight.value) for index, weight in enumerate(model.weights)}
    np.savez_compressed(FOLDER / "keras_weights.npz", **values)
    for weight in model.weights:
        print(weight.path, tuple(weight.shape))


if __name__ == "__main__":
    main()
