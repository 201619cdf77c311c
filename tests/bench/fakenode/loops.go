package main

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

type result struct {
	Pods    int     `json:"pods"`
	Failed  int64   `json:"failed"`
	Seconds float64 `json:"seconds"`
}

const ended = "status.phase!=Pending,status.phase!=Running"

// crew is what all loops share: the body, the limit of requests in flight, and a count of what went wrong.
type crew struct {
	o      *options
	body   []byte
	slots  chan struct{}
	failed atomic.Int64
}

func newCrew(o *options) *crew {
	body, err := os.ReadFile(o.body)
	fail(err)
	return &crew{o: o, body: body, slots: make(chan struct{}, o.inflight)}
}

func (c *crew) call(method, url, kind string, body []byte) (int, []byte) {
	c.slots <- struct{}{}
	defer func() { <-c.slots }()
	return c.o.api.call(method, url, kind, body)
}

func (c *crew) create(name string) bool {
	body := bytes.ReplaceAll(c.body, []byte("@NAME@"), []byte(name))
	return c.check(c.call("POST", c.o.api.path(""), "application/json", body))
}

func (c *crew) remove(name string) bool {
	return c.check(c.call("DELETE", c.o.api.path("/"+name), "", nil))
}

func (c *crew) check(status int, data []byte) bool {
	if status >= 200 && status < 300 {
		return true
	}
	if c.failed.Add(1) <= 3 {
		fmt.Fprintln(os.Stderr, status, string(data[:min(len(data), 300)]))
	}
	return false
}

func (c *crew) name(event, pod int) string { return fmt.Sprintf("%s-%d-%d", c.o.prefix, event, pod) }

func (c *crew) result(pods int, began time.Time) result {
	return result{Pods: pods, Failed: c.failed.Load(), Seconds: time.Since(began).Seconds()}
}

func each(count int, work func(int)) {
	var all sync.WaitGroup
	for n := 0; n < count; n++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			work(n)
		}(n)
	}
	all.Wait()
}

// bare is the limit: one goroutine per pod, one watch that tells only of ended pods, no typed objects, no state.
func bare(o *options) result {
	c := newCrew(o)
	query := url.Values{"labelSelector": {o.selector}, "fieldSelector": {ended}}
	ends := make(map[string]chan struct{}, o.pods)
	for n := 0; n < o.pods; n++ {
		ends[c.name(0, n)] = make(chan struct{}, 2)
	}
	version := o.api.version(query)
	go func() {
		// a server under load cuts a watch that does not keep up: on from where it was
		for {
			err := o.api.watch(query, version, func(told *podLine) {
				version = told.Object.Metadata.ResourceVersion
				if wake := ends[told.Object.Metadata.Name]; wake != nil && told.Type == "ADDED" {
					wake <- struct{}{}
				}
			})
			fmt.Fprintln(os.Stderr, "the watch of the bare loop ended:", err)
			time.Sleep(10 * time.Millisecond)
		}
	}()
	began := time.Now()
	each(o.pods, func(n int) {
		name := c.name(0, n)
		if c.create(name) {
			<-ends[name]
			c.remove(name)
		}
	})
	return c.result(o.pods, began)
}

// poll is the polling design in our own words: events one at a time, a goroutine per pod that looks at it every so many
// seconds, and one budget of requests per second for everything.
func poll(o *options) result {
	c := newCrew(o)
	budget := &bucket{rate: o.rate, burst: float64(o.burst)}
	began := time.Now()
	for event := 0; event < o.events; event++ {
		each(o.pods, func(n int) {
			name := c.name(event, n)
			budget.wait()
			if !c.create(name) {
				return
			}
			for {
				time.Sleep(o.every)
				budget.wait()
				status, data := c.call("GET", o.api.path("/"+name), "", nil)
				if c.check(status, data) && bytes.Contains(data, []byte(`"phase":"Succeeded"`)) {
					break
				}
			}
			budget.wait()
			c.remove(name)
		})
	}
	return c.result(o.events*o.pods, began)
}

// warm creates and deletes: a server that has only just started is two to four times slower.
func warm(o *options) result {
	c := newCrew(o)
	began := time.Now()
	each(o.pods, func(n int) {
		if name := c.name(0, n); c.create(name) {
			c.remove(name)
		}
	})
	return c.result(o.pods, began)
}

// bucket is a budget of requests: so many at once, then so many per second.
type bucket struct {
	rate, burst float64

	lock   sync.Mutex
	tokens float64
	at     time.Time
}

func (b *bucket) wait() {
	if b.rate == 0 {
		return
	}
	b.lock.Lock()
	now := time.Now()
	if b.at.IsZero() {
		b.tokens = b.burst
	} else {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	b.tokens--
	missing := -b.tokens / b.rate
	b.lock.Unlock()
	if missing > 0 {
		time.Sleep(time.Duration(missing * float64(time.Second)))
	}
}
