// The programs of the benchmark that must not be slow themselves: a node that only says how pods are, the bare loop that
// is the limit to compare with, the polling design, and the warm-up. Standard library only, so that nothing is fetched.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

type options struct {
	api      access
	inflight int
	body     string
	selector string
	prefix   string
	events   int
	pods     int
	rate     float64
	burst    int
	every    time.Duration
}

func main() {
	var o options
	mode := flag.String("mode", "", "node, bare, poll or warm")
	flag.StringVar(&o.api.server, "server", "", "URL of the API server")
	flag.StringVar(&o.api.ca, "ca", "", "its CA")
	flag.StringVar(&o.api.cert, "cert", "", "client certificate, or none")
	flag.StringVar(&o.api.key, "key", "", "its key")
	flag.StringVar(&o.api.tokenFile, "token", "", "file with a bearer token, or none")
	flag.StringVar(&o.api.namespace, "namespace", "", "where the pods live")
	flag.IntVar(&o.inflight, "inflight", 32, "requests in flight at once")
	flag.StringVar(&o.body, "body", "", "file with the pod to create, @NAME@ for its name")
	flag.StringVar(&o.selector, "selector", "", "label selector of those pods")
	flag.StringVar(&o.prefix, "prefix", "p", "how their names begin")
	flag.IntVar(&o.events, "events", 1, "poll: events, one after the other")
	flag.IntVar(&o.pods, "pods", 1000, "pods, of each event")
	flag.Float64Var(&o.rate, "rate", 0, "poll: requests per second; 0: no limit")
	flag.IntVar(&o.burst, "burst", 10, "poll: requests at once")
	flag.DurationVar(&o.every, "every", 2*time.Second, "poll: pause between two looks at a pod")
	flag.Parse()
	o.api.connect(o.inflight + 2)
	if *mode == "node" {
		newNode(&o).serve()
		return
	}
	loop, ok := map[string]func(*options) result{"bare": bare, "poll": poll, "warm": warm}[*mode]
	if !ok {
		fmt.Fprintln(os.Stderr, "-mode is node, bare, poll or warm")
		os.Exit(2)
	}
	// Whoever measures reads /proc before the start and before the end: neither is in the figures.
	input := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	input.ReadString('\n')
	told, _ := json.Marshal(loop(&o))
	fmt.Println(string(told))
	input.ReadString('\n')
}
