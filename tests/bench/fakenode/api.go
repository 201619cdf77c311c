package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// access is the way to one namespace of an API server: HTTP/1.1, kept connections, raw bodies.
type access struct {
	server, ca, cert, key, tokenFile, namespace string

	token  string
	client *http.Client
}

type podLine struct {
	Type   string
	Object struct {
		Kind     string
		Code     int
		Metadata struct{ Name, UID, ResourceVersion string }
		Status   struct{ Phase string }
	}
}

func (a *access) connect(connections int) {
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(a.ca)
	fail(err)
	pool.AppendCertsFromPEM(pem)
	config := &tls.Config{RootCAs: pool}
	if a.cert != "" {
		pair, err := tls.LoadX509KeyPair(a.cert, a.key)
		fail(err)
		config.Certificates = []tls.Certificate{pair}
	}
	if a.tokenFile != "" {
		token, err := os.ReadFile(a.tokenFile)
		fail(err)
		a.token = strings.TrimSpace(string(token))
	}
	transport := &http.Transport{TLSClientConfig: config, MaxIdleConns: connections, MaxIdleConnsPerHost: connections}
	transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	a.client = &http.Client{Transport: transport}
}

func (a *access) path(name string) string {
	return a.server + "/api/v1/namespaces/" + a.namespace + "/pods" + name
}

func (a *access) request(method, url, kind string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(context.Background(), method, url, bytes.NewReader(body))
	fail(err)
	if a.token != "" {
		request.Header.Set("Authorization", "Bearer "+a.token)
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	return a.client.Do(request)
}

// call sends one request and returns its status (0: no answer) and body.
func (a *access) call(method, url, kind string, body []byte) (int, []byte) {
	response, err := a.request(method, url, kind, body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return response.StatusCode, data
}

// version is where a watch begins that shall see all pods created from now on.
func (a *access) version(query url.Values) string {
	_, data := a.call("GET", a.path("?limit=1&"+query.Encode()), "", nil)
	var list struct {
		Metadata struct{ ResourceVersion string }
	}
	fail(json.Unmarshal(data, &list))
	return list.Metadata.ResourceVersion
}

// watch hands over line by line until the server ends it.
func (a *access) watch(query url.Values, version string, line func(*podLine)) error {
	query.Set("watch", "1")
	query.Set("resourceVersion", version)
	query.Set("timeoutSeconds", "1800")
	response, err := a.request("GET", a.path("?"+query.Encode()), "", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	reader := bufio.NewReaderSize(response.Body, 1<<20)
	for {
		data, err := reader.ReadBytes('\n')
		if err != nil {
			return err
		}
		var told podLine
		if err := json.Unmarshal(data, &told); err != nil {
			return err
		}
		if told.Object.Kind != "Pod" {
			return fmt.Errorf("the watch ended with code %d", told.Object.Code)
		}
		line(&told)
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
