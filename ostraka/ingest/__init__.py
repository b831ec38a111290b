"""Files to documents to the mesh: readers find structure, the chunker cuts passages, the pipeline sends them.

sources   which files, and why others are skipped
readers   one per format: text and its blocks (headings, paragraphs, list items, code)
chunker   blocks to passages of about 180 words with overlap; pure
checkpoint  what was acknowledged, so that an interrupted run goes on where it stopped
pipeline  a bounded number of Upserts in flight
"""
