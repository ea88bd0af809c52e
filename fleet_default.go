package mobula

import "time"

// Default gives a fleet with every default that the field comments state, and no platform.
func Default() Fleet {
	return Fleet{
		APIVersion: APIVersion,
		Kind:       Kind,
		Name:       "default",
		Router: Router{
			Listen: ":8000",
			Policy: Policy{Name: "cost", SessionHeader: "X-Session-Id", SessionField: "user", LoadFactor: 1.25},
			Timeouts: Timeouts{
				Connect:    Duration(2 * time.Second),
				FirstByte:  Duration(60 * time.Second),
				Plain:      Duration(10 * time.Minute),
				Idle:       Duration(60 * time.Second),
				Total:      Duration(time.Hour),
				ReadHeader: Duration(10 * time.Second),
				ReadBody:   Duration(60 * time.Second),
				Write:      Duration(60 * time.Second),
				KeepAlive:  Duration(120 * time.Second),
				Drain:      Duration(30 * time.Second),
				Lameduck:   0,
			},
			Retries: Retries{Attempts: 2, Budget: 0.2, MaxRetryAfter: Duration(2 * time.Second)},
			Health: Health{
				Interval:        Duration(time.Second),
				Timeout:         Duration(2 * time.Second),
				EjectAfter:      3,
				ModelsInterval:  Duration(10 * time.Second),
				MetricsInterval: Duration(5 * time.Second),
			},
			Limits: Limits{
				Body:            64 << 20,
				Header:          64 << 10,
				InFlight:        20000,
				Connections:     20000,
				IdleConnections: 1024,
				Depth:           100,
			},
			Log: Log{Level: "info", Format: "text"},
		},
		KV: KV{Index: Index{Memory: 64 << 20}},
	}
}

// defaulter is a part of the fleet that stands in a list or behind a pointer, where Default can't reach.
type defaulter interface{ setDefaults() }

func (s *Static) setDefaults() { s.HostTimeout = Duration(time.Minute) }

func (r *Ray) setDefaults() {
	r.Namespace, r.Mode, r.Poll = "mobula", "actors", Duration(time.Second)
}

func (k *KubeRay) setDefaults() { k.RayVersion, k.Auth = "2.60.0", "token" }

func (d *KubernetesDiscover) setDefaults() { d.By = "pods" }

func (m *Model) setDefaults() {
	m.Ray.CPUs = 1
	m.Engine = Engine{Kind: "vllm", StartTimeout: Duration(30 * time.Minute), StopTimeout: Duration(45 * time.Second)}
	m.Resources.Hosts = 1
	m.Scaling = Scaling{
		TTFT:      Duration(2 * time.Second),
		ITL:       Duration(100 * time.Millisecond),
		UpAfter:   Duration(10 * time.Second),
		DownAfter: Duration(5 * time.Minute),
		ZeroAfter: Duration(10 * time.Minute),
		Held:      1000,
		HeldFor:   Duration(10 * time.Minute),
	}
	m.Rollout = Rollout{Surge: 1, Drain: Duration(5 * time.Minute), Rollback: true}
}

func (p *Provider) setDefaults() {
	p.Kind, p.Use, p.SpillAfter, p.InFlight = "openai", "fallback", Duration(10*time.Second), 100
}

// NewModel gives a model with every default that the field comments state.
func NewModel(name string) Model {
	m := Model{Name: name}
	m.setDefaults()
	return m
}
