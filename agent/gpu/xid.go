package gpu

// xidEvent is an error that the driver reported of a GPU.
type xidEvent struct {
	uuid string
	xid  int
}

// critical says what an error means after which a GPU must be reset, or its host rebooted, before it serves again; it is
// empty for the others. They are those whose immediate action in NVIDIA's catalog
// (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html) is RESET_GPU, RESTART_BM, or the workflow of 48 or
// of 74. Left out are 109, which NVIDIA's own Kubernetes device plugin takes for an application's, and 155, which links report
// that sleep. No reset is asked for after 63 (rows were remapped), 92 (many corrected errors), 94 (contained in one process),
// and those of applications such as 13, 31, 43 and 45.
func critical(xid int) string {
	switch xid {
	case 46:
		return "the GPU stopped processing"
	case 48:
		return "uncorrectable memory error (double-bit ECC)"
	case 62:
		return "its micro-controller halted"
	case 64:
		return "memory remapping failed"
	case 74:
		return "NVLink error"
	case 79:
		return "the GPU has fallen off the bus"
	case 95:
		return "uncontained memory error"
	case 110:
		return "security fault"
	case 119:
		return "its system processor (GSP) does not answer"
	case 120:
		return "its system processor (GSP) failed"
	case 136:
		return "NVLink training failed"
	case 140:
		return "unrecovered memory error (ECC)"
	case 143:
		return "the GPU could not be initialised"
	case 156:
		return "resources were retired, and take a reset"
	case 158:
		return "fatal timeout"
	}
	return ""
}
