// Pause holds a pod's namespaces open. As process 1 of a shared process
// namespace it also reaps what others leave behind.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for {
		// Children may have ended before SIGCHLD was watched for, and one signal may stand for many.
		for {
			child, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if child <= 0 && err != syscall.EINTR {
				break
			}
		}
		if <-signals != syscall.SIGCHLD {
			return
		}
	}
}
