package gpu

// xidEvent is an error that the driver reported of a GPU.
type xidEvent struct {
	uuid string
	xid  int
}

// criticalXIDs are the errors after which a GPU must be reset, or its host rebooted, before it serves again: those whose
// immediate action in NVIDIA's catalog (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html) is
// RESET_GPU, RESTART_BM, or the workflow of 48 or 74. Left out are 109 and 155, which NVIDIA's own Kubernetes device plugin takes
// for an application's, or which links that sleep report; 63 (rows were remapped), 92 (many corrected errors), 94 (contained in
// one process), and those of applications such as 13, 31, 43 and 45.
//
//nolint:gochecknoglobals // a constant table
var criticalXIDs = map[int]string{
	46:  "the GPU stopped processing",
	48:  "uncorrectable memory error (double-bit ECC)",
	62:  "its micro-controller halted",
	64:  "memory remapping failed",
	74:  "NVLink error",
	79:  "the GPU has fallen off the bus",
	95:  "uncontained memory error",
	110: "security fault",
	119: "its system processor (GSP) does not answer",
	120: "its system processor (GSP) failed",
	136: "NVLink training failed",
	140: "unrecovered memory error (ECC)",
	143: "the GPU could not be initialised",
	156: "resources were retired, and take a reset",
	158: "fatal timeout",
}
