from fedsim.controller import resume, run
