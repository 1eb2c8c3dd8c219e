"""Keeps every request of a page on its own site: the theme's dormant thebe entry would load from a CDN."""


def drop_remote_scripts(app, pagename, templatename, context, doctree):
    names = {script: str(getattr(script, "filename", script) or "") for script in context["script_files"]}
    context["script_files"] = [script for script, name in names.items() if "thebe" not in name]


def setup(app):
    app.connect("html-page-context", drop_remote_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
