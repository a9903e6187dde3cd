"""The interactive charts of the HTML report, one module a subject: a DataFrame in, an Altair chart out.

No chart knows where its numbers come from (`bench.report.figures` collects them) or how it gets into a page
(`bench.report.html`). Altair is imported with these modules, so only when a report is built.
"""
