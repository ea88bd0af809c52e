// Package real tests the router end to end against real vLLM engines on CPU, with the
// official clients, a bare-metal fleet with real vLLM and in network namespaces, and a fleet on a real Ray cluster in
// namespaces of its own, which ray.sh installs; namespaces need root.
// Its tests need the build tag "real" and what setup.sh installs:
//
//	make test-real
//
// MOBULA_REAL_DIR names the folder that setup.sh prints. MOBULA_REAL_ENGINES, three URLs
// (two of the model tiny with the LoRA ad1, one of tinyemb), has engines used that run
// already; then what kills engines is not run. Flag -artifacts keeps the logs.
package real
