"""Keeps every request of a page on its own site: thebe's dormant scripts would load from a CDN."""


def drop_remote_scripts(app, pagename, templatename, context, doctree):
    def loads_thebe(script):
        return "thebe" in f"{script.filename} {script.attributes}".lower()

    context["script_files"] = [script for script in context["script_files"] if not loads_thebe(script)]


def setup(app):
    app.connect("html-page-context", drop_remote_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
