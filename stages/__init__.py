"""What the stages do. A picture's way through the house:

    folder | list | packaged set
        |  shard      check, resize, encode         -> train-*.tar, val-*.tar, index, contact sheet
        |  tokenizer  VQGAN on a gang of ranks      -> encoder, codebook, decoder
        |  maps, cond_tokenizer: the same once more for a spatial condition, a map beside each picture
        |  encode     pictures, conditions to codes -> one Parquet table of tokens a shard
        |  prior      GPT or other, on the tokens   -> the generator's second half
        |  sample     draw tokens, decode           -> pictures in the shard format, grids
        |  evaluate   judge all of it               -> report.json, report.html
        v  publish    against the version in use    -> decision.json, a bundle to hand out

Each stage module holds its config and a short work function, which imports its loop when called: `encoding/`,
`training/`, `sampling/`, `metrics/` and `publishing/` do the work, `models/` and `data/` know nothing of ranks, devices
or stages.
"""
