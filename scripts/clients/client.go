// net/http of Go, with the default transport. driver.py describes the lines.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

var client = &http.Client{Timeout: time.Minute}

func send(fields []string) (string, error) {
	method, url, framing, bodyFile, out, lines := fields[0], fields[1], fields[3], fields[4], fields[5], fields[6:]
	var body io.Reader
	if bodyFile != "-" {
		content, err := os.ReadFile(bodyFile)
		if err != nil {
			return "", err
		}
		body = bytes.NewReader(content)
		if framing == "chunked" {
			body = io.MultiReader(body) // of no length that net/http would know
		}
	}
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return "", err
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		if name == "Host" {
			request.Host = value
		}
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(out, answer, 0o600); err != nil {
		return "", err
	}
	text := fmt.Sprint(response.StatusCode)
	for name, values := range response.Header {
		text += "\t" + name + ": " + strings.Join(values, ", ")
	}
	// net/http takes the length of the body out of the header where it is HEAD's as well.
	if response.ContentLength >= 0 && response.Header.Get("Content-Length") == "" {
		text += fmt.Sprintf("\tContent-Length: %d", response.ContentLength)
	}
	return text, nil
}

func main() {
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadString('\n')
		if err != nil {
			return
		}
		answer, err := send(strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
		if err != nil {
			answer = "FAILED\t" + strings.NewReplacer("\t", " ", "\n", " ").Replace(err.Error())
		}
		fmt.Println(answer)
	}
}
