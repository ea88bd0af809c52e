package daemon

const abstractNames = true
