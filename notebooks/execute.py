"""Execute the tutorial and keep its outputs in the file: ``make notebook-save``."""

import base64
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIAL = Path(__file__).with_name("backpropagation.ipynb")
VIEW = "application/vnd.jupyter.widget-view+json"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells in ``folder``, by this interpreter; a cell that raises ends it with CellExecutionError."""
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        record_timing=False,
        timeout=300,
    )
    client.execute()
    replace_widgets(notebook)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def replace_widgets(notebook: nbformat.NotebookNode) -> None:
    """Put the picture in place of the slider, which needs a kernel that has executed the notebook."""
    models = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    (image,) = (model for model in models.values() if model["model_name"] == "ImageModel")
    png = base64.b64encode(base64.b64decode(image["buffers"][0]["data"])).decode()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if VIEW in output.get("data", ()):
                output.data = {"image/png": png, "text/plain": "<a slider, a list and their picture>"}


if __name__ == "__main__":
    tutorial = nbformat.read(TUTORIAL, as_version=4)
    execute(tutorial, TUTORIAL.parent)
    nbformat.write(tutorial, TUTORIAL)
