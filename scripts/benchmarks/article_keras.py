"""The article's program as people write it with Keras, on three CSV files; article.py runs it.

python article_keras.py FOLDER SEED        reads FOLDER/{train,validation,test}.csv, prints one line of JSON
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import pandas as pd
from sklearn.preprocessing import StandardScaler

folder, seed = sys.argv[1], int(sys.argv[2])
epochs, tuning = (int(word) for word in (sys.argv[3:] or (10, 5)))
keras.utils.set_random_seed(seed)

frames = [
    pd.read_csv(f"{folder}/{name}.csv", na_values="?", keep_default_na=False).dropna()
    for name in ("train", "validation", "test")
]
labels = sorted(frames[0].income.unique())
targets = [frame.income.map(labels.index).to_numpy() for frame in frames]
inputs = pd.concat([frame.drop(columns="income") for frame in frames], keys=range(3))
numbers = inputs.select_dtypes("number").columns
inputs = pd.get_dummies(inputs, dtype="float32").astype("float32")
scaler = StandardScaler().fit(inputs.loc[0, numbers])
inputs[numbers] = scaler.transform(inputs[numbers])
train, validation, test = (inputs.loc[part].to_numpy() for part in range(3))

model = keras.Sequential(
    [
        keras.Input((train.shape[1],)),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(len(labels), activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(
    train, targets[0], epochs=epochs, batch_size=32, validation_data=(validation, targets[1]), verbose=0
)
before = model.evaluate(test, targets[2], verbose=0)[1]
model.compile(
    optimizer=keras.optimizers.Adam(1e-4), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
)
model.fit(
    train, targets[0], epochs=tuning, batch_size=32, validation_data=(validation, targets[1]), verbose=0
)
after = model.evaluate(test, targets[2], verbose=0)[1]
print(json.dumps({"trained": before, "finetuned": after, "rows": [len(target) for target in targets]}))
