# SPDX-License-Identifier: GPL-2.0
#
# Turns the names wanted (second file, rust/bindings.names) into options for bindgen, leaving out
# what the kernel's bindings (first file) already define. A type that the kernel's bindings only
# declare, without its fields, counts as not defined.

NR == FNR {
	if (opened != "") {
		if ($0 !~ /_unused: \[u8; 0\]/)
			have["type", opened]
		opened = ""
	}
	if (match($0, /^pub (struct|union) [A-Za-z0-9_]+/)) {
		name = $3
		sub(/[^A-Za-z0-9_].*/, "", name)
		opened = name
	} else if (match($0, /^pub (type|const|static) |^    pub (fn|static) /)) {
		kind = $2
		name = $3 == "mut" ? $4 : $3
		sub(/[^A-Za-z0-9_].*/, "", name)
		have[kind == "static" ? "const" : kind, name]
	}
	next
}

{
	sub(/#.*/, "")
	allowlist = $1 == "fn" ? "function" : $1 == "const" ? "var" : "type"
	for (i = 2; i <= NF; i++)
		if (!(($1, $i) in have))
			print "--allowlist-" allowlist, $i ($1 == "type" ? "(__bindgen_ty_.*)?" : "")
}

END {
	print "--allowlist-function rdax_.*"
	print "--allowlist-type rdax_.*"
	print "--allowlist-var RDAX_CONST_.*"
}
