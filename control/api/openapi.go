package api

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3gen"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control/client"
)

// document makes the OpenAPI document of the routes. Their types are ours, so it can't fail but by a
// mistake that the first test sees.
func document(routes []route, version string) []byte {
	doc := &openapi3.T{
		OpenAPI: "3.0.3",
		Info: &openapi3.Info{
			Title: "Mobula control plane", Version: version,
			Description: "Errors have the body Error; its code is one word for programs: invalid, conflict, notfound, " +
				"impossible, unavailable, unauthorized or internal.",
		},
		Paths: openapi3.NewPaths(),
		Components: &openapi3.Components{
			Schemas: openapi3.Schemas{},
			SecuritySchemes: openapi3.SecuritySchemes{
				"token":     {Value: openapi3.NewSecurityScheme().WithType("http").WithScheme("bearer").WithDescription("The control plane's token. A client certificate of the control plane or, where a router may, of a router does as well.")},
				"joinToken": {Value: openapi3.NewSecurityScheme().WithType("http").WithScheme("bearer").WithDescription("A join token. An agent's certificate does as well.")},
			},
		},
	}
	d := documenter{schemas: doc.Components.Schemas}
	failure := d.response("An error.", jsonOf(client.ErrorBody{}))
	for _, r := range routes {
		op := &openapi3.Operation{
			OperationID: r.id, Summary: r.about, Security: security(r.access),
			Parameters: parameters(r), RequestBody: d.request(r.takes),
		}
		op.AddResponse(r.status, d.response("Success.", r.gives))
		if r.id == "ready" {
			op.AddResponse(503, d.response("Not ready.", r.gives))
		}
		op.AddResponse(0, failure) // "default"
		doc.AddOperation(r.path, r.method, op)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("encode the OpenAPI document: %v", err))
	}
	return b
}

func security(a access) *openapi3.SecurityRequirements {
	all := openapi3.NewSecurityRequirements()
	switch a {
	case forPeople, forRouter:
		all.With(openapi3.NewSecurityRequirement().Authenticate("token"))
	case forAgent:
		all.With(openapi3.NewSecurityRequirement().Authenticate("joinToken"))
	default:
	}
	return all
}

// parameters gives those of the path and of the query.
func parameters(r route) openapi3.Parameters {
	var all openapi3.Parameters
	for _, name := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(r.path, -1) {
		p := openapi3.NewPathParameter(name[1]).WithSchema(openapi3.NewStringSchema().WithMinLength(1).WithMaxLength(maxName))
		all = append(all, &openapi3.ParameterRef{Value: p})
	}
	for _, p := range params() {
		for _, name := range r.query {
			if name == p.name {
				q := openapi3.NewQueryParameter(p.name).WithDescription(p.about).WithSchema(p.schema)
				q.AllowEmptyValue = p.schema.Type.Is("boolean") // ?dry
				all = append(all, &openapi3.ParameterRef{Value: q})
			}
		}
	}
	return all
}

// documenter makes schemas of Go types and keeps them by name.
type documenter struct{ schemas openapi3.Schemas }

func (d documenter) request(c content) *openapi3.RequestBodyRef {
	if c.kind == "" {
		return nil
	}
	return &openapi3.RequestBodyRef{Value: openapi3.NewRequestBody().WithRequired(true).WithContent(d.content(c))}
}

func (d documenter) response(about string, c content) *openapi3.Response {
	r := openapi3.NewResponse().WithDescription(about)
	if c.kind != "" {
		r.WithContent(d.content(c))
	}
	return r
}

func (d documenter) content(c content) openapi3.Content {
	schema := &openapi3.SchemaRef{Value: openapi3.NewStringSchema()}
	if c.kind == "application/json" {
		schema.Value = openapi3.NewObjectSchema()
	}
	if c.like != nil {
		schema = d.schema(reflect.TypeOf(c.like))
	}
	return openapi3.Content{c.kind: openapi3.NewMediaType().WithSchemaRef(schema)}
}

// schema refers to a type's schema and makes it when it is new.
func (d documenter) schema(t reflect.Type) *openapi3.SchemaRef {
	name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
	if d.schemas[name] == nil {
		s, err := openapi3gen.NewSchemaRefForValue(reflect.Zero(t).Interface(), nil, openapi3gen.SchemaCustomizer(refine))
		if err != nil {
			panic(fmt.Sprintf("schema of %s: %v", t, err))
		}
		d.schemas[name] = s
	}
	return openapi3.NewSchemaRef("#/components/schemas/"+name, nil)
}

// refine tells what the generator does not see: types that are written as text, and fields that are always there.
func refine(_ string, t reflect.Type, _ reflect.StructTag, s *openapi3.Schema) error {
	switch {
	case t == reflect.TypeFor[time.Time]():
	case t.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		*s = *openapi3.NewStringSchema()
		switch t {
		case reflect.TypeFor[mobula.Size]():
			s.Description = "Bytes, as 64MiB, 1GB or plain digits."
		case reflect.TypeFor[mobula.Range]():
			s.Description = "A number, or the least and the most: 2, 1-" + strconv.Itoa(mobula.MaxReplicas) + "."
		}
	case t.Kind() == reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			tag, ok := f.Tag.Lookup("json")
			name, options, _ := strings.Cut(tag, ",")
			if ok && name != "" && name != "-" && !strings.Contains(options, "omit") {
				s.Required = append(s.Required, name)
			}
		}
	}
	return nil
}
