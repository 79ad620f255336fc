"""What is written into a chat template before it is compiled, so that running it is counted. Renders nothing.

The calls put here go to methods of the environment that runs the template: `spend`, `concatenated`, `checked` and
`touched` of `template_sandbox`.
"""

# ruff: noqa: N802, N815 (methods are found by the names of Jinja's nodes)

from __future__ import annotations

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

CHARACTERS_PER_STEP = 64
"""Text that counts as much as one operation."""

_NODES_PER_STEP = 8


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: marks the assistant's text for training; nothing to us."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way to declare them)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Instrument(NodeTransformer):
    """Puts the budget into the places that Jinja's sandbox has no hook for."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not allowed in a chat template", node.lineno)
        toll = _toll(node.body, node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(toll, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(toll, node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        toll = _toll(node.body, node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(toll, lineno=node.lineno))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("concatenated", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Call:
        self.generic_visit(node)
        return _call("checked", [node], node.lineno)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return node if node.ctx == "store" else _call("checked", [node], node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _call("touched", [node.expr], node.lineno)
        for operand in node.ops:
            operand.expr = _call("touched", [operand.expr], node.lineno)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call("touched", [node.node], node.lineno)
        return node


def _toll(body: list[nodes.Node], line: int) -> nodes.Call:
    """What one run of a body costs: its nodes, and the text that it writes."""
    every = [node for part in body for node in (part, *part.find_all(nodes.Node))]
    text = sum(len(node.data) for node in every if isinstance(node, nodes.TemplateData))
    steps = 1 + len(every) // _NODES_PER_STEP + text // CHARACTERS_PER_STEP
    return _call("spend", [nodes.Const(steps, lineno=line)], line)


def _call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)
