package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"
)

const stamp = "2006-01-02T15:04:05Z"

// node says of every pod of the namespace that it runs, and later that it has succeeded: after a run time, or on
// command. A command may say that a pod ran longer than it did, so that ten minutes cost a second.
type node struct {
	o    *options
	jobs chan job
	seen map[string]bool // the watch's own
	logs *logs

	lock    sync.Mutex
	run     time.Duration // guarded by lock; negative: until the command
	running []string      // guarded by lock
	ended   []end         // guarded by lock
	started int           // guarded by lock
	missed  int           // guarded by lock: pods that were gone before their status was told
	lag     time.Duration // guarded by lock: the longest that a status waited for its turn
	bound   bool          // guarded by lock: pods get a node, and have logs
	given   int           // guarded by lock: pods that got one
}

type job struct {
	name  string
	phase string
	ran   time.Duration
	due   time.Time
}

// end is when a pod was said to have ended: the request sent and its answer, microseconds since the epoch.
type end struct {
	Name     string `json:"name"`
	Sent     int64  `json:"sent"`
	Answered int64  `json:"answered"`
}

func newNode(o *options) *node {
	return &node{o: o, jobs: make(chan job, 1<<20), seen: map[string]bool{}, logs: newLogs(), run: -1}
}

func (n *node) serve() {
	for worker := 0; worker < n.o.inflight; worker++ {
		go n.work()
	}
	go n.follow()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	http.HandleFunc("/run", n.setRun)
	http.HandleFunc("/release", n.release)
	http.HandleFunc("/state", n.state)
	http.HandleFunc("/reset", n.reset)
	http.HandleFunc("/logs", n.setLogs)
	http.HandleFunc("/written", n.written)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	fail(http.Serve(listener, nil))
}

func (n *node) follow() {
	query := url.Values{"fieldSelector": {"status.phase=Pending"}}
	version := n.o.api.version(query)
	for {
		err := n.o.api.watch(query, version, func(told *podLine) {
			meta := told.Object.Metadata
			version = meta.ResourceVersion
			if told.Type == "ADDED" && !n.seen[meta.UID] {
				n.seen[meta.UID] = true
				n.jobs <- job{name: meta.Name, phase: "Running", due: time.Now()}
			}
		})
		fmt.Fprintln(os.Stderr, "the node's watch ended:", err)
		time.Sleep(100 * time.Millisecond)
	}
}

func (n *node) work() {
	for j := range n.jobs {
		n.prepare(j)
		sent := time.Now()
		kind := "application/merge-patch+json"
		status, data := n.o.api.call("PATCH", n.o.api.path("/"+j.name+"/status"), kind, patch(j, sent))
		answered := time.Now()
		if status != 200 && status != 404 {
			fmt.Fprintln(os.Stderr, "patch", j.name, status, string(data[:min(len(data), 300)]))
		}
		n.note(j, status == 200, sent, answered)
	}
}

// prepare: a log begins before the status says that the pod runs, and has ended before the status says so.
func (n *node) prepare(j job) {
	n.lock.Lock()
	bound, number := n.bound, n.given
	if bound && j.phase == "Running" {
		n.given++
	}
	n.lock.Unlock()
	if j.phase == "Succeeded" {
		n.logs.end(j.name)
	} else if bound {
		n.logs.bind(&n.o.api, j.name, number)
		n.logs.begin(j.name)
	}
}

func (n *node) note(j job, done bool, sent, answered time.Time) {
	n.lock.Lock()
	defer n.lock.Unlock()
	n.lag = max(n.lag, sent.Sub(j.due))
	switch {
	case !done:
		n.missed++
	case j.phase == "Succeeded":
		n.ended = append(n.ended, end{j.name, sent.UnixMicro(), answered.UnixMicro()})
	case n.run < 0:
		n.started++
		n.running = append(n.running, j.name)
	default:
		n.started++
		run := n.run
		time.AfterFunc(run, func() { n.jobs <- job{j.name, "Succeeded", run, time.Now()} })
	}
}

func patch(j job, now time.Time) []byte {
	began := now.Add(-j.ran).UTC().Format(stamp)
	state := `{"running":{"startedAt":"` + began + `"}}`
	if j.phase == "Succeeded" {
		state = fmt.Sprintf(`{"terminated":{"exitCode":0,"reason":"Completed","startedAt":"%s","finishedAt":"%s"}}`,
			began, now.UTC().Format(stamp))
	}
	return []byte(fmt.Sprintf(`{"status":{"phase":"%s","conditions":[{"type":"PodScheduled","status":"True",`+
		`"lastTransitionTime":"%s"}],"containerStatuses":[{"name":"agent","image":"none","imageID":"","ready":false,`+
		`"restartCount":0,"state":%s}]}}`, j.phase, began, state))
}

// setRun: how long pods run from now on (`for`, a Go duration), or until the command (`for=hold`).
func (n *node) setRun(w http.ResponseWriter, r *http.Request) {
	run, err := time.ParseDuration(r.FormValue("for"))
	if err != nil {
		run = -1
	}
	n.lock.Lock()
	n.run = run
	n.lock.Unlock()
}

// release ends running pods, `count` of them (all without it; with `newest` those that started last), `rate` per second
// (0: at once), which ran for `ran`.
func (n *node) release(w http.ResponseWriter, r *http.Request) {
	count, err := strconv.Atoi(r.FormValue("count"))
	rate, _ := strconv.ParseFloat(r.FormValue("rate"), 64)
	ran, _ := time.ParseDuration(r.FormValue("ran"))
	n.lock.Lock()
	if err != nil || count > len(n.running) {
		count = len(n.running)
	}
	names, left := n.running[:count], n.running[count:]
	if r.FormValue("newest") != "" {
		left, names = n.running[:len(n.running)-count], n.running[len(n.running)-count:]
	}
	n.running = append([]string{}, left...)
	n.lock.Unlock()
	go func() {
		began := time.Now()
		for i, name := range names {
			if rate > 0 {
				time.Sleep(time.Until(began.Add(time.Duration(float64(i) / rate * float64(time.Second)))))
			}
			n.jobs <- job{name, "Succeeded", ran, time.Now()}
		}
	}()
}

// state: counts since the reset, and with `ends` every end.
func (n *node) state(w http.ResponseWriter, r *http.Request) {
	n.lock.Lock()
	defer n.lock.Unlock()
	told := map[string]any{"started": n.started, "running": len(n.running), "ended": len(n.ended), "missed": n.missed,
		"lag_ms": float64(n.lag.Microseconds()) / 1000}
	if r.FormValue("ends") != "" {
		told["ends"] = n.ended
	}
	json.NewEncoder(w).Encode(told)
}

func (n *node) reset(w http.ResponseWriter, r *http.Request) {
	n.lock.Lock()
	defer n.lock.Unlock()
	n.running, n.ended, n.started, n.missed, n.lag = nil, nil, 0, 0, 0
	n.bound = false
	n.logs.forget()
}
