# %% [markdown]
# The bundled example from Python: `pip install .` in a clone, then each cell in turn, in a notebook or an editor that knows `# %%`.

# %%
import esmerge

# %% [markdown]
# What would be done. A recipe is a `dict`, or the path of a YAML file.

# %%
experts = ["fashion", "letters", "animals", "digits8"]
vision = "examples/vision"
recipe = {
    "merge_method": "esm",
    "base_model": f"{vision}/base",
    "models": [{"model": f"{vision}/experts/{e}", "calibration": f"{vision}/calibration/{e}.safetensors"} for e in experts],
    "parameters": {"alpha": 0.5},
}
plan = esmerge.plan(recipe)
print(len(plan["layers"]), "layers")

# %% [markdown]
# Doing it. `force` replaces what an earlier run of this cell made.

# %%
report = esmerge.merge(recipe, "out", force=True)
for group in report["groups"]:
    print(group.get("name") or group.get("reason"), group["role"], group.get("beta"))

# %% [markdown]
# What the merged model can do, beside the expert of each task.

# %%
tasks = [f"{vision}/tasks/{e}.safetensors" for e in experts]
for task in esmerge.evaluate("out", tasks, experts=f"{vision}/recipe.yaml")["tasks"]:
    print(f"{task['task']:10} {task['value']:.1%}, its expert {task['expert']:.1%}")
