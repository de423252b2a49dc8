// Hyperkube is every Kubernetes component in one static binary: the name it is
// called by, or its first argument, chooses which one it becomes.
//
// One binary is smaller than six (they share most of their code), is read from
// disk once, and lets a node say with one version string what it runs.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	// Registered for every component: the JSON log format, and the metrics of
	// the Go client and of the build itself.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"

	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// components in the order in which they are listed. Each entry is a function,
// because building a component's command registers its flags and metrics: only
// the chosen one may do so.
var components = []struct {
	name    string
	command func() *cobra.Command
}{
	{"kube-apiserver", apiserver.NewAPIServerCommand},
	{"kube-controller-manager", controllermanager.NewControllerManagerCommand},
	{"kube-proxy", proxy.NewProxyCommand},
	{"kube-scheduler", func() *cobra.Command { return scheduler.NewSchedulerCommand() }},
	{"kubectl", func() *cobra.Command { return cmd.NewDefaultKubectlCommand() }},
	// The kubelet installs the signal handlers itself when it runs; they can be installed once.
	{"kubelet", func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }},
}

func main() {
	// Called through a link named after a component: /usr/local/bin/kubelet.
	if run, found := find(filepath.Base(os.Args[0])); found {
		os.Exit(run())
	}
	// Called by its own name: hyperkube kubelet --flags. The component then
	// sees itself as argv[0], so its usage and kubectl's plugin rules are right.
	if len(os.Args) > 1 {
		if run, found := find(os.Args[1]); found {
			os.Args = os.Args[1:]
			os.Exit(run())
		}
		if os.Args[1] == "-h" || os.Args[1] == "--help" {
			usage(os.Stdout)
			return
		}
		fmt.Fprintf(os.Stderr, "hyperkube: no component %q\n\n", os.Args[1])
	}
	usage(os.Stderr)
	os.Exit(2)
}

// find returns what runs the component of that name and yields its exit code.
func find(name string) (run func() int, found bool) {
	for _, component := range components {
		if component.name != name {
			continue
		}
		if name == "kubectl" {
			// kubectl decides itself how its errors look and what it exits with.
			return func() int {
				if err := cli.RunNoErrOutput(component.command()); err != nil {
					util.CheckErr(err)
				}
				return 0
			}, true
		}
		return func() int { return cli.Run(component.command()) }, true
	}
	return nil, false
}

func usage(to io.Writer) {
	fmt.Fprintln(to, "Usage: hyperkube COMPONENT [flags]\n\nComponents:")
	for _, component := range components {
		fmt.Fprintf(to, "  %s\n", component.name)
	}
}
