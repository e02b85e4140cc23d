# SPDX-License-Identifier: GPL-2.0
"""Files that share blocks: each may go its own way, by any means, without the other noticing."""
