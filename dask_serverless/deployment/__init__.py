"""What a deployment in AWS consists of, what is there of it, and how it is removed.

`manifest`, `findings` and `steps` are pure: the pieces, what is wrong with what was found, what to do next. `account`
speaks to AWS, with `kinds`, which knows each kind of piece; `removal` performs. Why: decision 0035.
"""
