# SPDX-License-Identifier: Apache-2.0
import json
import os
import socket
import sys

import torch

from torch_utils import machine


def test_a_description_is_json_and_does_not_identify_the_machine():
    found = machine.describe(torch.device("cpu"))
    text = json.dumps(found)
    assert found["device"] == "cpu" and found["torch"] == torch.__version__
    assert 1 <= found["cores"] <= os.cpu_count() and found["memory_gib"] > 0
    assert socket.gethostname() not in text and os.path.expanduser("~") not in text


def test_the_short_name_of_a_cpu_is_its_number_of_cores():
    assert machine.short_name(torch.device("cpu")) == f"{os.cpu_count()} CPU cores"


def test_output_of_commands_that_fail_or_do_not_exist_is_none():
    assert machine.command_output([sys.executable, "-c", "print('1.2')"]) == "1.2"
    assert machine.command_output([sys.executable, "-c", "print('1.2'); raise SystemExit(1)"]) is None
    assert machine.command_output(["no-such-command"]) is None
