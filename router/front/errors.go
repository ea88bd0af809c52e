package front

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// openAIError is the default ErrorBody.
func openAIError(_ []byte, status int, message string) []byte {
	kind := strings.ReplaceAll(http.StatusText(status), " ", "") + "Error"
	b := append([]byte(`{"error":{"message":`), strconv.Quote(message)...)
	b = append(b, `,"type":`...)
	b = strconv.AppendQuote(b, strings.Replace(kind, "ErrorError", "Error", 1))
	b = append(b, `,"param":null,"code":`...)
	b = strconv.AppendInt(b, int64(status), 10)
	return append(b, "}}"...)
}

// clock keeps the Date line of the current second.
type clock struct{ last atomic.Pointer[dateLine] }

type dateLine struct {
	second int64
	text   string
}

// append adds "Date: ...\r\n".
func (d *clock) append(b []byte, now time.Time) []byte {
	l := d.last.Load()
	if l == nil || l.second != now.Unix() {
		l = &dateLine{now.Unix(), "Date: " + now.UTC().Format(http.TimeFormat) + "\r\n"}
		d.last.Store(l)
	}
	return append(b, l.text...)
}
