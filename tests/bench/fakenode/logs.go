package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	nano = "2006-01-02T15:04:05.000000000Z"
	// as long as a line of a build's log: with its number and this it has some 80 bytes
	text = " INFO worker: step 12 of the build is done, 3 of 40 tests are left"
	// lines are written so often where there are many of them
	burst = 20 * time.Millisecond
	// of one write, however far behind a reader is
	most = 1000
)

// logs are the log files of the node, as the API server reads them from a kubelet. Nothing is stored: a line follows from
// its number, so a log of any length costs nothing, and each reader is served at its own pace.
type logs struct {
	url   string
	nodes int

	lock    sync.Mutex
	rate    float64          // guarded by lock: of pods that start from now on, lines per second; 0: none
	total   int              // guarded by lock: then they write no more; 0: no end
	files   map[string]*file // guarded by lock
	follows int              // guarded by lock: that are open
}

// file is the log of one pod.
type file struct {
	began time.Time
	rate  float64
	total int
	ended chan struct{} // closed at the end of the pod
	last  time.Time     // when that was
}

func newLogs() *logs {
	l := &logs{files: map[string]*file{}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(l.serve))
	server.StartTLS()
	l.url = server.URL
	return l
}

func (l *logs) set(rate float64, total int) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.rate, l.total = rate, total
}

func (l *logs) begin(pod string) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.files[pod] = &file{began: time.Now(), rate: l.rate, total: l.total, ended: make(chan struct{})}
}

func (l *logs) end(pod string) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if f := l.files[pod]; f != nil && f.last.IsZero() {
		f.last = time.Now()
		close(f.ended)
	}
}

// written is how many lines the pod has written in its whole life, of those that have ended.
func (l *logs) written() map[string]int {
	l.lock.Lock()
	defer l.lock.Unlock()
	found := map[string]int{}
	for pod, f := range l.files {
		if !f.last.IsZero() {
			found[pod] = f.count(f.last)
		}
	}
	return found
}

// forget: the logs of all pods are gone.
func (l *logs) forget() {
	l.lock.Lock()
	defer l.lock.Unlock()
	for _, f := range l.files {
		if f.last.IsZero() {
			f.last = time.Now()
			close(f.ended)
		}
	}
	l.files = map[string]*file{}
}

// count is how many lines the pod has written until then.
func (f *file) count(now time.Time) int {
	count := int(now.Sub(f.began).Seconds() * f.rate)
	if f.total > 0 {
		return min(count, f.total)
	}
	return count
}

func (f *file) at(number int) time.Time {
	return f.began.Add(time.Duration(float64(number+1) / f.rate * float64(time.Second)))
}

// serve answers as a kubelet does: /containerLogs/NAMESPACE/POD/CONTAINER.
func (l *logs) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	l.lock.Lock()
	var f *file
	if len(parts) == 5 && parts[1] == "containerLogs" {
		f = l.files[parts[3]]
	}
	l.lock.Unlock()
	if f == nil {
		http.Error(w, "no such container", http.StatusNotFound)
		return
	}
	number := 0
	if since, err := time.Parse(time.RFC3339, r.FormValue("sinceTime")); err == nil && f.rate > 0 {
		for number = max(0, int(since.Sub(f.began).Seconds()*f.rate)-2); f.at(number).Before(since); number++ {
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	w.(http.Flusher).Flush()
	follow := r.FormValue("follow") == "true"
	l.lock.Lock()
	l.follows++
	l.lock.Unlock()
	f.write(w, r, number, follow)
	l.lock.Lock()
	l.follows--
	l.lock.Unlock()
}

func (f *file) write(w http.ResponseWriter, r *http.Request, number int, follow bool) {
	for {
		over := false
		select {
		case <-f.ended:
			over = true
		default:
		}
		now := time.Now()
		if over {
			now = f.last
		}
		written := f.count(now)
		if number < written {
			data := []byte{}
			for stop := min(written, number+most); number < stop; number++ {
				data = append(data, f.at(number).UTC().Format(nano)...)
				data = append(data, ' ')
				data = strconv.AppendInt(data, int64(number), 10)
				data = append(data, text...)
				data = append(data, '\n')
			}
			if _, err := w.Write(data); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
		if number < written {
			continue
		}
		if over || !follow {
			return
		}
		select {
		case <-f.ended:
		case <-r.Context().Done():
			return
		case <-time.After(f.pause(number)):
		}
	}
}

// pause is how long nothing is written.
func (f *file) pause(number int) time.Duration {
	if f.rate == 0 || (f.total > 0 && number >= f.total) {
		return time.Hour
	}
	return max(time.Until(f.at(number))+time.Millisecond/10, min(burst, time.Duration(float64(time.Second)/f.rate)))
}

// register adds this many nodes to the API server, all of which are this one: a node has a limit of follows.
func (l *logs) register(api *access, count int) {
	port := l.url[strings.LastIndex(l.url, ":")+1:]
	for n := l.nodes; n < count; n++ {
		body := fmt.Sprintf(`{"metadata":{"name":"%s"},"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],`+
			`"daemonEndpoints":{"kubeletEndpoint":{"Port":%s}}}}`, nodeName(n), port)
		status, data := api.call("POST", api.server+"/api/v1/nodes", "application/json", []byte(body))
		if status != 201 {
			fail(fmt.Errorf("node %d: %d %s", n, status, data))
		}
	}
	l.nodes = max(l.nodes, count)
}

func nodeName(n int) string { return fmt.Sprintf("bench-%d", n) }

// bind gives a pod to a node: until then no log of it can be read.
func (l *logs) bind(api *access, pod string, number int) {
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Binding","metadata":{"name":"%s"},"target":{"kind":"Node","name":"%s"}}`,
		pod, nodeName(number%l.nodes))
	api.call("POST", api.path("/"+pod+"/binding"), "application/json", []byte(body))
}

// setLogs: pods that start from now on write `rate` lines per second, `total` lines at most; they are on `nodes` nodes.
func (n *node) setLogs(w http.ResponseWriter, r *http.Request) {
	rate, _ := strconv.ParseFloat(r.FormValue("rate"), 64)
	total, _ := strconv.Atoi(r.FormValue("total"))
	nodes, _ := strconv.Atoi(r.FormValue("nodes"))
	n.logs.register(&n.o.api, nodes)
	n.logs.set(rate, total)
	n.lock.Lock()
	n.bound = nodes > 0
	n.lock.Unlock()
}

// written: the lines that each ended pod has written, and the follows that are open.
func (n *node) written(w http.ResponseWriter, r *http.Request) {
	written := n.logs.written()
	n.logs.lock.Lock()
	defer n.logs.lock.Unlock()
	json.NewEncoder(w).Encode(map[string]any{"written": written, "follows": n.logs.follows})
}
