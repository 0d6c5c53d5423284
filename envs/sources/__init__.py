"""Raw files in, `PreparedData` out: one module per format, and the filters and splits that they share.

`options` holds the dataclasses, `pipeline.build` the steps from events to splits, `table`, `recsys15`, `taobao`,
`rees46`, `choice_sets`, `lastfm` and `reddit` the formats.
"""
