"""SCI: may this call go on? Pure decisions and page-table changes; no engine, no clock, no files.

The RFC's names and ours (Rapoport and Bottomley, "x86: introduce system calls addess space isolation",
linux-kernel, 25 April 2019): `sci_clone_user_pgtbl` and `sci_init` are `baseline` and `pagetable`,
`sci_verify_and_map` is `fault.classify`, a policy, and `fault.grant`; `sci_verify_code_access` is
`policies.patch`; `sci_clear_data` is what `enforcement.enforcer` does at a call's end; `struct sci_task_data`
is `enforcement.tasks.TaskState`.
"""
